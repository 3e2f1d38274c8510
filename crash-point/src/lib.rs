//! Named places at which a test can end a program of Shunt as SIGKILL does.
//!
//! A place does something only with the feature `armed`, which no shipped program has.
//!
//! To arm a place, a test writes its name to the file that [`FILE_VARIABLE`] names. The first
//! process that reaches the place removes the file and ends immediately. So a place can be armed
//! while the programs run, and the successor of the ended process, which has the same environment,
//! passes the place. With the word `panic` after the name, the thread panics there instead.

/// The environment variable that names the file.
#[cfg(feature = "armed")]
pub const FILE_VARIABLE: &str = "SHUNT_CRASH_POINT_FILE";

/// Ends the process here if a test wants it.
#[cfg(not(feature = "armed"))]
#[inline(always)]
pub const fn here(_name: &str) {}

/// Ends the process here, after calling `_last`, if a test wants it.
#[cfg(not(feature = "armed"))]
#[inline(always)]
pub fn here_after(_name: &str, _last: impl FnOnce()) {}

/// Ends the process here if a test wants it.
#[cfg(feature = "armed")]
pub fn here(name: &str) {
    here_after(name, || ());
}

/// Ends the process here, after calling `last`, if a test wants it.
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
    // Of several processes, the one that removes the file ends.
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
