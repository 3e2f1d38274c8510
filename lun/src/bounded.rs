//! A time limit for questions that the kernel may never answer: a file system whose server is dead,
//! a device that hangs.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// Most threads that may wait for the kernel past their limit; further work is refused until one of
/// them ends.
const STUCK_MAX: usize = 16;

/// Threads that wait for the kernel past their limit.
static STUCK: AtomicUsize = AtomicUsize::new(0);

/// The path that a bounded piece of work is examining at the moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Step(Arc<Mutex<String>>);

impl Step {
    /// Notes that `path` is examined next.
    pub(crate) fn asks(&self, path: &Path) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = path.display().to_string();
    }

    fn text(&self) -> String {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// Runs `work` on a new thread and waits at most `limit` for the result. A thread that exceeds the
/// limit is abandoned: nothing can end it.
///
/// # Errors
/// [`io::ErrorKind::TimedOut`] with the last [`Step`]; [`STUCK_MAX`] threads are abandoned already;
/// the thread cannot be created; `work` panicked.
pub(crate) fn within<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce(&Step) -> T + Send + 'static,
) -> io::Result<T> {
    if STUCK.load(Ordering::Relaxed) >= STUCK_MAX {
        return Err(io::Error::other(format!(
            "{STUCK_MAX} earlier questions still wait for a device or file system that does not answer"
        )));
    }
    let step = Step::default();
    let (done, result) = sync_channel(1);
    let (watched, ended) = (step.clone(), Arc::new(AtomicUsize::new(RUNNING)));
    let state = Arc::clone(&ended);
    thread::Builder::new()
        .name("bounded".to_owned())
        .spawn(move || {
            let answer = work(&watched);
            // The receiver is gone after the limit.
            let _ = done.send(answer);
            if state.swap(ENDED, Ordering::Relaxed) == LEFT_BEHIND {
                STUCK.fetch_sub(1, Ordering::Relaxed);
            }
        })?;
    match result.recv_timeout(limit) {
        Ok(answer) => Ok(answer),
        Err(RecvTimeoutError::Disconnected) => Err(io::Error::other("internal error: it panicked")),
        Err(RecvTimeoutError::Timeout) => {
            STUCK.fetch_add(1, Ordering::Relaxed);
            if ended.swap(LEFT_BEHIND, Ordering::Relaxed) == ENDED {
                STUCK.fetch_sub(1, Ordering::Relaxed);
            }
            Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!(
                    "no answer within {} s{}",
                    limit.as_secs(),
                    waits_for(&step.text())
                ),
            ))
        }
    }
}

const RUNNING: usize = 0;
const LEFT_BEHIND: usize = 1;
const ENDED: usize = 2;

fn waits_for(step: &str) -> String {
    match step {
        "" => String::new(),
        step => format!(", {step} does not answer"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn work_that_does_not_end_is_given_up_with_its_last_step() {
        let (release, held) = channel::<()>();
        let error = within(Duration::from_millis(20), move |step| {
            step.asks(Path::new("/first"));
            step.asks(Path::new("/mnt/dead"));
            let _ = held.recv();
        })
        .unwrap_err();
        drop(release);
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(
            error.to_string().contains("/mnt/dead does not answer"),
            "{error}"
        );
    }

    #[test]
    fn work_that_ends_is_answered() {
        assert_eq!(within(Duration::from_secs(60), |_| 5).unwrap(), 5);
        let panics = within(Duration::from_secs(60), |_| panic!("on purpose"));
        assert!(panics.is_err());
    }
}
