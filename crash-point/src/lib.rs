//! Named places at which a test can end a program of Shunt as SIGKILL does.
//!
//! Without the feature `armed`, which nothing that is shipped has, a place is nothing at all.
//!
//! With it, a test writes the name of a place to the file that [`FILE_VARIABLE`] names. The first process that
//! comes to that place removes the file and ends at once. So a place is armed while the programs run, and the successor of the
//! process that ended, which has the same environment, passes it. With the word `panic` behind the name, the thread panics
//! there instead.

/// The environment variable that names the file.
#[cfg(feature = "armed")]
pub const FILE_VARIABLE: &str = "SHUNT_CRASH_POINT_FILE";

/// Ends the process here if a test wants it.
#[cfg(not(feature = "armed"))]
#[inline(always)]
pub const fn here(_name: &str) {}

/// Ends the process here, after doing something, if a test wants it.
#[cfg(not(feature = "armed"))]
#[inline(always)]
pub fn here_after(_name: &str, _last: impl FnOnce()) {}

/// Ends the process here if a test wants it.
#[cfg(feature = "armed")]
pub fn here(name: &str) {
    here_after(name, || ());
}

/// Ends the process here, after doing something, if a test wants it.
#[cfg(feature = "armed")]
pub fn here_after(name: &str, last: impl FnOnce()) {
    let Some(file) = std::env::var_os(FILE_VARIABLE) else {
        return;
    };
    let Ok(armed) = std::fs::read_to_string(&file) else {
        return;
    };
    let mut words = armed.split_whitespace();
    let (is_meant, how) = (words.next() == Some(name), words.next());
    // The one that removes the file is the one that ends.
    if is_meant && std::fs::remove_file(&file).is_ok() {
        last();
        assert!(how != Some("panic"), "a panic at the crash point {name}");
        eprintln!("ended at the crash point {name}");
        // SAFETY: kill takes numbers only.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
        // The signal ends this thread before it returns from the call.
        std::process::abort();
    }
}
