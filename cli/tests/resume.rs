//! A run that is killed and resumed ends equal, bit for bit, to one that is not; so do two fresh runs.

mod common;

use std::{
    process::Stdio,
    thread::sleep,
    time::{Duration, Instant},
};

use common::{Project, final_bytes};

/// A uniform number from a counter, so that a failure can be repeated.
fn fraction(i: u64) -> f64 {
    let mut z = i.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (z >> 11) as f64 / (1_u64 << 53) as f64
}

/// The fields of `metrics.jsonl` that do not depend on the clock.
fn metrics(project: &Project, run: &str) -> Vec<String> {
    let text = std::fs::read_to_string(project.path(run).join("metrics.jsonl")).expect("the run has metrics");
    let timeless = |line: &str| {
        let mut record: serde_json::Value = serde_json::from_str(line).expect("a line is JSON");
        let fields = record.as_object_mut().expect("a line is an object");
        fields.retain(|key, _| !key.contains("seconds") && !key.contains("per_second"));
        record.to_string()
    };
    text.lines().map(timeless).collect()
}

#[test]
fn killed_twenty_times_and_resumed() {
    let project = Project::new();
    let started = Instant::now();
    project.succeed(&["run", "recipe.yaml", "--run-dir", "whole"]);
    let duration = started.elapsed();
    project.succeed(&["run", "recipe.yaml", "--run-dir", "again"]);
    let expected = final_bytes(&project.path("whole"));
    assert!(final_bytes(&project.path("again")) == expected, "two fresh runs differ");
    assert_eq!(metrics(&project, "again"), metrics(&project, "whole"));

    let (mut killed, mut fresh) = (0, 0);
    for try_number in 0..20_u64 {
        let run = format!("run-{try_number}");
        let mut child = project.command(&["run", "recipe.yaml", "--run-dir", &run, "--resume"]);
        let mut child = child.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        sleep(Duration::from_secs_f64(duration.as_secs_f64() * fraction(try_number)));
        if child.try_wait().unwrap().is_none() {
            killed += 1;
        }
        child.kill().unwrap(); // SIGKILL
        child.wait().unwrap();
        let out = project.succeed(&["run", "recipe.yaml", "--run-dir", &run, "--resume"]);
        fresh += usize::from(out.contains("afresh"));
        assert!(
            final_bytes(&project.path(&run)) == expected,
            "try {try_number} ends with other bits:\n{out}"
        );
        assert_eq!(metrics(&project, &run), metrics(&project, "whole"), "try {try_number}");
    }
    println!("killed {killed} of 20 while running, {fresh} of them before the first checkpoint");
    assert!(killed >= 10, "only {killed} tries were killed while they ran");
}

#[test]
fn ctrl_c_writes_a_checkpoint_and_says_how_to_go_on() {
    let project = Project::new();
    project.succeed(&["run", "recipe.yaml", "--run-dir", "whole", "--set", "stages[0].steps=150"]);
    let arguments = ["run", "recipe.yaml", "--run-dir", "stopped", "--set", "stages[0].steps=150"];
    let child = project.command(&arguments).stdout(Stdio::piped()).spawn().unwrap();
    let begun = project.path("stopped").join("checkpoints/pretrain/step-00000003");
    while !begun.exists() {
        sleep(Duration::from_millis(5));
    }
    let interrupted =
        std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(interrupted.success());
    let output = child.wait_with_output().unwrap();
    let out = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(130), "{out}");
    assert!(out.contains("--run-dir stopped --resume"), "{out}");
    project.succeed(&[&arguments[..], &["--resume"]].concat());
    let last = "checkpoints/pretrain/step-00000150/model.safetensors";
    let read = |run: &str| std::fs::read(project.path(run).join(last)).unwrap();
    assert!(read("stopped") == read("whole"), "an interrupted and resumed run ends with other bits");
}
