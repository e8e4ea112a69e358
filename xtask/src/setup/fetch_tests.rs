//! Downloads from a small package index on this machine that can break off, ignore ranges and lie.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use super::*;
use crate::testing::Folder;

const FILE: &str = "demo-1.0-py3-none-any.whl";

/// How the server behaves.
#[derive(Clone, Copy, Default)]
struct Habits {
    /// Sends this many bytes of the file's first answer, then closes.
    breaks_after: Option<usize>,
    /// Sends the whole file whatever range is asked for.
    ignores_ranges: bool,
}

/// A page of links at `/` and one file at `/FILE`; remembers the ranges it was asked for.
struct Index {
    address: String,
    ranges: Arc<Mutex<Vec<String>>>,
}

impl Index {
    fn serve(content: Vec<u8>, habits: Habits) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}/", listener.local_addr().unwrap());
        let ranges = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&ranges);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let _ = answer(&stream, &content, habits, &seen);
            }
        });
        Self { address, ranges }
    }

    fn fetch(&self, python: &Python, folder: &Folder, size: usize) -> (i32, String) {
        fetch_script(python, &self.address, folder, FILE, size)
    }
}

/// Runs the fetching script as [`download`] does, with pip pointed at a page or folder of links.
fn fetch_script(python: &Python, links: &str, folder: &Folder, file: &str, size: usize) -> (i32, String) {
    let mut command = python.script(FETCH);
    command.args(["demo", "1.0", file, &size.to_string()]).arg(folder.path().join("partial")).arg("any");
    command.env("PIP_CONFIG_FILE", "/dev/null").env("PIP_NO_INDEX", "1");
    command.env("PIP_FIND_LINKS", links).env("NO_PROXY", "127.0.0.1");
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // Held open: the script ends when it closes.
    let stdin = child.stdin.take();
    let output = child.wait_with_output().unwrap();
    drop(stdin);
    (output.status.code().unwrap_or(-1), last_line(&String::from_utf8_lossy(&output.stderr)))
}

fn answer(
    stream: &TcpStream,
    content: &[u8],
    habits: Habits,
    ranges: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut request, mut from) = (String::new(), None);
    reader.read_line(&mut request)?;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        if line.trim().is_empty() {
            break;
        }
        if let Some(range) = line.to_lowercase().strip_prefix("range: bytes=") {
            from = range.trim().trim_end_matches('-').parse::<usize>().ok();
        }
    }
    let mut out = stream;
    if !request.contains(FILE) {
        let page = format!("<html><body><a href=\"/{FILE}\">{FILE}</a></body></html>");
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n";
        return write!(out, "{head}Content-Length: {}\r\n\r\n{page}", page.len());
    }
    let from = from.unwrap_or(0);
    let first = {
        let mut ranges = ranges.lock().unwrap();
        ranges.push(format!("{from}-"));
        ranges.len() == 1
    };
    let (status, body) =
        if habits.ignores_ranges { ("200 OK", content) } else { ("206 Partial Content", &content[from..]) };
    write!(out, "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len())?;
    match habits.breaks_after.filter(|_| first) {
        Some(n) => out.write_all(&body[..n]),
        None => out.write_all(body),
    }
}

/// The Python to test with; a machine without one cannot run these tests, nor the set-up.
fn python() -> Option<Python> {
    let found = Python::find().ok();
    if found.is_none() {
        eprintln!("skipped: no python3 with pip");
    }
    found
}

fn content() -> Vec<u8> {
    (0..1_500_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

#[test]
fn a_broken_connection_goes_on_where_it_stopped() {
    let Some(python) = python() else { return };
    let folder = Folder::new("broken");
    let index = Index::serve(content(), Habits { breaks_after: Some(600_000), ..Habits::default() });
    assert_eq!(index.fetch(&python, &folder, content().len()).0, 0);
    assert_eq!(fs::read(folder.path().join("partial")).unwrap(), content());
    let ranges = index.ranges.lock().unwrap();
    assert_eq!(ranges[0], "0-");
    assert_ne!(ranges[1], "0-");
}

#[test]
fn a_second_run_goes_on_where_the_first_was_killed() {
    let Some(python) = python() else { return };
    let folder = Folder::new("killed");
    folder.write("partial", &content()[..1_000_000]);
    let index = Index::serve(content(), Habits::default());
    assert_eq!(index.fetch(&python, &folder, content().len()).0, 0);
    assert_eq!(fs::read(folder.path().join("partial")).unwrap(), content());
    assert_eq!(*index.ranges.lock().unwrap(), ["1000000-"]);
}

#[test]
fn a_server_without_ranges_starts_anew() {
    let Some(python) = python() else { return };
    let folder = Folder::new("no-ranges");
    folder.write("partial", "something else");
    let index = Index::serve(content(), Habits { ignores_ranges: true, ..Habits::default() });
    assert_eq!(index.fetch(&python, &folder, content().len()).0, 0);
    assert_eq!(fs::read(folder.path().join("partial")).unwrap(), content());
}

#[test]
fn an_index_without_the_file_is_named() {
    let Some(python) = python() else { return };
    let folder = Folder::new("absent");
    let links = folder.path().to_string_lossy();
    let (code, reason) = fetch_script(&python, &links, &folder, "demo-2.0-py3-none-any.whl", 10);
    assert_eq!(code, 11);
    assert!(reason.ends_with("does not offer demo-2.0-py3-none-any.whl"), "{reason}");
}

#[test]
fn a_script_whose_parent_is_gone_ends() {
    let Some(python) = python() else { return };
    let mut command = python.script(FETCH);
    command.args(["demo", "1.0", FILE, "1", "partial", "any"]).stdin(Stdio::null());
    assert_eq!(command.status().unwrap().code(), Some(13));
}

#[test]
fn a_wheel_with_the_wrong_checksum_is_deleted() {
    let folder = Folder::new("mismatch");
    let wheel = Wheel { name: "demo", version: "1.0", file: FILE, bytes: 3, sha256: "00", keep: &[] };
    let partial = folder.write(&format!("{FILE}.partial"), "abc");
    // The whole file lies there already, from an "earlier try": it is refused, and the next try has no network.
    let python = Python { program: "/bin/false".into(), pip: "0".into() };
    assert_eq!(reached(&wheel, folder.path()), Reached::Partial(3));
    assert!(fetch(&wheel, folder.path(), &python).is_err());
    assert!(!partial.exists() && !folder.path().join(FILE).exists());
}

#[test]
fn how_far_a_download_has_come() {
    let folder = Folder::new("reached");
    let wheel = Wheel { name: "demo", version: "1.0", file: FILE, bytes: 3, sha256: "00", keep: &[] };
    assert_eq!(reached(&wheel, folder.path()), Reached::Partial(0));
    folder.write(&format!("{FILE}.partial"), "abcd");
    assert_eq!(reached(&wheel, folder.path()), Reached::Partial(0), "too long is no beginning");
    folder.write(FILE, "abc");
    assert_eq!(reached(&wheel, folder.path()), Reached::Done);
}
