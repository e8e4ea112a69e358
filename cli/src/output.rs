//! Writing to the terminal, a file or a pipe that may close early.

use std::io::{self, IsTerminal, Write};
use std::path::Path;

/// Writes to standard output; a reader that has gone away (`hymba ... | head`) ends the process quietly.
pub fn print(text: &str) {
    let mut out = io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    if let Err(error) = written {
        if error.kind() == io::ErrorKind::BrokenPipe {
            std::process::exit(0);
        }
        self::error(&format!("cannot write to standard output: {error}"));
        std::process::exit(1);
    }
}

/// Writes a line to standard output.
pub fn line(text: &str) {
    print(&format!("{text}\n"));
}

/// Writes an error to standard error; what is multi-line already (rendered diagnostics) stands as it is.
pub fn error(text: &str) {
    let prefix = if text.contains('\n') { "" } else { "error: " };
    let _ = writeln!(io::stderr(), "{prefix}{}", text.trim_end());
}

/// Whether errors may be coloured.
pub fn colour() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// Writes a file, whole or not at all.
pub(crate) fn file(path: &Path, text: &str) -> Result<(), String> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = Path::new(&partial);
    let written = std::fs::write(partial, text).and_then(|()| std::fs::rename(partial, path));
    written.map_err(|error| {
        let _ = std::fs::remove_file(partial); // the first error is the one to report
        format!("{}: {error}", path.display())
    })
}
