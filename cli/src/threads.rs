//! How libtorch's threads wait for each other.

use std::{env, os::unix::process::CommandExt, process::Command};

const SPIN_COUNT: &str = "GOMP_SPINCOUNT";
const WAIT_POLICY: &str = "OMP_WAIT_POLICY";

/// Turns that a thread waits in place before it sleeps: tens of microseconds.
const TURNS: &str = "10000";

/// Starts this process again, once, with threads that wait in place only briefly; a user's own setting stands.
///
/// By default libtorch's threads (GNU OpenMP) spin for milliseconds after each operator. On a machine that is busy
/// otherwise, spinning threads keep working ones from their processors: training was measured to be 4 to 10 times
/// slower then, and no faster on an idle machine. The library reads its setting when it is loaded, before `main`, so
/// it takes a new process image; the process itself stays the same.
pub fn wait_briefly() {
    if env::var_os(SPIN_COUNT).is_some() || env::var_os(WAIT_POLICY).is_some() {
        return;
    }
    if let Ok(program) = env::current_exe() {
        let mut arguments = env::args_os();
        let name = arguments.next().unwrap_or_else(|| program.clone().into_os_string());
        // Returns only on failure; then the run goes on as it is.
        let _error = Command::new(program).arg0(name).args(arguments).env(SPIN_COUNT, TURNS).exec();
    }
}
