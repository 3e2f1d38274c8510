//! Runs the store on a thread of its own.

use tokio::sync::{mpsc, oneshot};

use super::{Store, StoreError};

/// The most calls that wait for the store's thread.
const CALLS_MAX: usize = 64;

enum Call {
    Make(Box<dyn FnOnce(&mut Store) + Send>),
    Close(oneshot::Sender<()>),
}

/// Calls the store from asynchronous code, in order. The thread ends with the last handle, or when
/// the store is closed.
#[derive(Debug, Clone)]
pub struct StoreHandle {
    calls: mpsc::Sender<Call>,
}

impl StoreHandle {
    /// Starts the thread of a store.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(mut store: Store) -> std::io::Result<Self> {
        let (calls, mut received) = mpsc::channel::<Call>(CALLS_MAX);
        std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || {
                while let Some(call) = received.blocking_recv() {
                    match call {
                        Call::Make(call) => call(&mut store),
                        Call::Close(closed) => {
                            drop(store);
                            let _ = closed.send(());
                            return;
                        }
                    }
                }
            })?;
        Ok(Self { calls })
    }

    /// Makes one call and waits for its result. The call is made even if the caller stops waiting.
    ///
    /// # Errors
    /// The error of the call; [`StoreError::Closed`] if the thread is gone.
    pub async fn call<T: Send + 'static>(
        &self,
        call: impl FnOnce(&mut Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, result) = oneshot::channel();
        let call = Box::new(move |store: &mut Store| {
            // If the caller waits no longer, the call was made nevertheless.
            let _ = reply.send(call(store));
        });
        self.calls
            .send(Call::Make(call))
            .await
            .map_err(|_| StoreError::Closed)?;
        result.await.map_err(|_| StoreError::Closed)?
    }

    /// Closes the database after all calls that were made before. Later calls get
    /// [`StoreError::Closed`].
    pub async fn close(&self) {
        let (reply, closed) = oneshot::channel();
        if self.calls.send(Call::Close(reply)).await.is_ok() {
            let _ = closed.await;
        }
    }
}
