//! Real processes that are really killed.
//!
//! The test binary starts itself: with `TRAINING_CHILD` set, the test `child` trains in that directory and ends.
#![allow(clippy::unwrap_used)]

mod common;

use std::{
    io::Read,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use common::{checkpoint_bytes, loop_config, metrics, options, recipe, run};
use serde_json::json;
use training::prelude::*;

const CHILD: &str = "TRAINING_CHILD";
/// Milliseconds that every step of the child waits.
const PAUSE: &str = "TRAINING_PAUSE";
const STEPS: u64 = 80;
/// A checkpoint every second step: most of the time goes into writing them.
const OFTEN: &str =
    "checkpoint: {every_steps: 2, keep_last: 3, keep_best: 1}, log: {every_steps: 1, tensorboard: false}";

fn config() -> LoopConfig {
    loop_config(&json!({ "steps": STEPS, "evaluate_every": 7 }))
}

#[test]
fn child() {
    let Ok(folder) = std::env::var(CHILD) else { return };
    let mut options = options(Path::new(&folder), Path::new(&folder).exists());
    options.console = Console::stdout();
    let pause = std::env::var(PAUSE).map_or(0, |text| text.parse().unwrap());
    match run(&recipe(OFTEN), options, &config(), |task| task.pause = Duration::from_millis(pause)) {
        Ok(_) => {}
        Err(error) => {
            eprintln!("{error}");
            std::process::exit(error.exit_code());
        }
    }
}

fn command(folder: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["child", "--exact", "--nocapture", "--test-threads=1"]).env(CHILD, folder);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn start(folder: &Path) -> Child {
    command(folder).spawn().unwrap()
}

fn steps_done(folder: &Path) -> u64 {
    std::fs::read_to_string(folder.join("metrics.jsonl")).map_or(0, |text| text.lines().count() as u64)
}

/// Waits until the child has logged some steps, or ended.
fn wait_for_steps(child: &mut Child, folder: &Path, steps: u64) {
    let (mut seen, mut made, begin) = (steps_done(folder), 0, Instant::now());
    while made < steps && child.try_wait().unwrap().is_none() {
        assert!(begin.elapsed() < Duration::from_secs(60), "the child makes no steps");
        std::thread::sleep(Duration::from_millis(1));
        let now = steps_done(folder);
        made += now.saturating_sub(seen); // a resumed child first takes lines away
        seen = now;
    }
}

#[test]
fn killed_again_and_again_a_run_ends_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, broken) = (folder.path().join("whole"), folder.path().join("broken"));
    let (expected, _) = run(&recipe(OFTEN), options(&whole, false), &config(), |_| ()).unwrap();
    for kill in 0..8_u64 {
        let mut child = start(&broken);
        wait_for_steps(&mut child, &broken, 2 + kill);
        // Somewhere within a step or a checkpoint: a checkpoint takes a few milliseconds.
        std::thread::sleep(Duration::from_micros(700 * kill));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let (outcome, _) = run(&recipe(OFTEN), options(&broken, true), &config(), |_| ()).unwrap();
    assert_eq!(outcome.evaluation, expected.evaluation);
    assert!(metrics(&whole) == metrics(&broken), "the metrics differ");
    for ((name, a), (_, b)) in
        checkpoint_bytes(&whole, STEPS).into_iter().zip(checkpoint_bytes(&broken, STEPS))
    {
        assert!(a == b, "{name} differs");
    }
    let left: Vec<_> = std::fs::read_dir(broken.join("checkpoints/pretrain"))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert!(left.iter().all(|name| name.to_str().unwrap().starts_with("step-")), "{left:?}");
}

#[test]
fn ctrl_c_writes_a_checkpoint_and_says_how_to_go_on() {
    for (signal, code) in [("INT", 130), ("TERM", 143)] {
        let folder = tempfile::tempdir().unwrap();
        let (whole, broken) = (folder.path().join("whole"), folder.path().join("broken run"));
        let mut child = start(&broken);
        wait_for_steps(&mut child, &broken, 11);
        send(&child, signal);
        let status = child.wait().unwrap();
        let mut text = String::new();
        child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(status.code(), Some(code), "{text}");
        let command = format!("hymba run recipe.yaml --run-dir '{}' --resume", broken.display());
        assert!(text.contains(&command), "{text}");
        // The checkpoint is of the last step that was made, so nothing is made twice.
        let last = metrics(&broken).last().unwrap().step;
        assert!(broken.join(format!("checkpoints/pretrain/step-{last:08}")).exists());
        run(&recipe(OFTEN), options(&broken, true), &config(), |_| ()).unwrap();
        run(&recipe(OFTEN), options(&whole, false), &config(), |_| ()).unwrap();
        assert!(metrics(&whole) == metrics(&broken), "the metrics differ");
        assert!(checkpoint_bytes(&whole, STEPS) == checkpoint_bytes(&broken, STEPS));
    }
}

#[test]
fn a_second_ctrl_c_stops_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run");
    let mut child = command(&path).env(PAUSE, "2000").spawn().unwrap();
    wait_for_steps(&mut child, &path, 1);
    send(&child, "INT");
    std::thread::sleep(Duration::from_millis(200)); // well within the next step
    assert!(child.try_wait().unwrap().is_none());
    let begin = Instant::now();
    send(&child, "INT");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(begin.elapsed() < Duration::from_millis(1500));
    assert_eq!(metrics(&path).len(), 1);
}

fn send(child: &Child, signal: &str) {
    let status = Command::new("kill").args(["-s", signal, &child.id().to_string()]).status().unwrap();
    assert!(status.success());
}

#[test]
fn a_reader_that_goes_away_does_not_stop_a_run() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run");
    let mut child = start(&path);
    wait_for_steps(&mut child, &path, 3);
    drop(child.stdout.take()); // as `| head` does
    assert!(child.wait().unwrap().code().is_some());
    assert_eq!(metrics(&path).last().unwrap().step, STEPS);
}

#[test]
fn a_disk_that_fills_leaves_the_last_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run");
    let binary = std::env::current_exe().unwrap();
    // A limit on the size of files stands for the full disk: the checkpoints fit, the metrics outgrow it.
    let script = format!("trap '' XFSZ; ulimit -f 12; exec '{}' child --exact --nocapture", binary.display());
    let output = Command::new("bash").args(["-c", &script]).env(CHILD, &path).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("File too large"), "{text}");
    let mut child = start(&path);
    wait_for_steps(&mut child, &path, 5);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(run(&recipe(OFTEN), options(&path, true), &config(), |_| ()).is_ok());
}

#[test]
fn a_directory_in_use_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run");
    let mut child = start(&path);
    wait_for_steps(&mut child, &path, 2);
    let error = run(&recipe(OFTEN), options(&path, true), &config(), |_| ()).unwrap_err().to_string();
    assert!(error.contains(&format!("in use by process {}", child.id())), "{error}");
    child.kill().unwrap();
    child.wait().unwrap();
}
