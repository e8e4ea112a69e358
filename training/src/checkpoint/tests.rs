//! Writing, finding, keeping and refusing checkpoints.

use std::{
    fs,
    path::{Path, PathBuf},
};

use tch::{Device, Kind, Tensor};

use super::*;
use crate::{data::Fingerprint, environment::Execution, trainer::Precision};

fn state(step: u64, best: &[u64]) -> TrainingState {
    TrainingState {
        format: FORMAT,
        stage: "pretrain".into(),
        step,
        total_steps: 100,
        tokens: step * 8,
        elapsed_seconds: 0.1,
        data: serde_json::json!({ "epoch": 0, "index": step }),
        fingerprint: Fingerprint::default().with("seed", 1),
        task: serde_json::Value::Null,
        best_metric: "validation_loss".into(),
        best: best.iter().map(|&step| Best { step, value: 0.1 + 0.2 }).collect(),
        evaluation: vec![("validation_loss".into(), Some(1.0 / 3.0)), ("perplexity".into(), None)],
        metrics_bytes: 7,
        settings: serde_json::json!({ "lr": 0.1 }),
        recipe_hash: "aa".into(),
        execution: Execution {
            device: "cpu".into(),
            threads: 1,
            cpu_capability: "AVX2".into(),
            libtorch: "2.11.0".into(),
            hymba_plus: "0.1.0".into(),
            precision: Precision::Float32,
            deterministic: true,
        },
    }
}

fn write(
    store: &CheckpointStore,
    step: u64,
    keep_last: usize,
    best: &[u64],
) -> Result<PathBuf, CheckpointError> {
    let tensor = |value: f64| Tensor::full([64], value, (Kind::Float, Device::Cpu));
    let contents = Contents {
        model: vec![("w".into(), tensor(step as f64))],
        optimizer: vec![("exp_avg.w".into(), tensor(0.5))],
        rng: vec![("cpu".into(), Tensor::from_slice(&[1_u8, 2, 3]))],
        state: &state(step, best),
    };
    store.write(&contents, keep_last)
}

fn store(folder: &Path) -> CheckpointStore {
    CheckpointStore::open(&folder.join("checkpoints")).unwrap()
}

#[test]
fn what_is_written_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    assert!(store.newest_good().unwrap().0.is_none());
    let path = write(&store, 200, 2, &[200]).unwrap();
    assert_eq!(path.file_name().unwrap(), "step-00000200");
    let (checkpoint, damaged) = store.newest_good().unwrap();
    let checkpoint = checkpoint.unwrap();
    assert!(damaged.is_empty());
    assert_eq!(checkpoint.state(), &state(200, &[200]));
    assert_eq!(checkpoint.model().unwrap().read("w").unwrap().int64_value(&[3]), 200);
    let mode = |name: &str| {
        use std::os::unix::fs::PermissionsExt;
        fs::metadata(path.join(name)).unwrap().permissions().mode() & 0o777
    };
    assert_eq!(mode(MODEL), mode(STATE));
    // The same step again, as after a resume from before it.
    write(&store, 200, 2, &[]).unwrap();
    assert_eq!(store.get(200).unwrap().state(), &state(200, &[]));
    assert_eq!(fs::read_dir(folder.path().join("checkpoints")).unwrap().count(), 1);
}

#[test]
fn the_newest_and_the_best_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    for (step, best, kept) in [
        (10, vec![10], vec![10]),
        (20, vec![20, 10], vec![10, 20]),
        (30, vec![20, 10], vec![10, 20, 30]),
        (40, vec![20, 40], vec![20, 30, 40]),
        (50, vec![20, 40], vec![20, 40, 50]),
        (60, vec![20, 40], vec![20, 40, 50, 60]),
    ] {
        write(&store, step, 2, &best).unwrap();
        assert_eq!(store.steps().unwrap(), kept, "after {step}");
    }
    write(&store, 70, 0, &[]).unwrap();
    assert_eq!(store.steps().unwrap(), [70]);
}

#[test]
fn damage_is_found_and_the_newest_good_one_taken() {
    type Harm = fn(&Path);
    let harms: [(&str, Harm, &str); 6] = [
        ("a bit flips", |path| flip(&path.join(MODEL)), "model.safetensors: its SHA-256 differs"),
        ("a file is cut", |path| cut(&path.join(OPTIMIZER)), "optimizer.safetensors: "),
        ("a file is gone", |path| fs::remove_file(path.join(RNG)).unwrap(), "rng.safetensors: "),
        ("the state changes", |path| flip(&path.join(STATE)), "state.json: its SHA-256 differs"),
        ("no checksums", |path| fs::remove_file(path.join("checksums.json")).unwrap(), "checksums.json"),
        ("torn checksums", |path| cut(&path.join("checksums.json")), "checksums.json"),
    ];
    for (name, harm, words) in harms {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        for step in [1, 2, 3] {
            write(&store, step, 3, &[]).unwrap();
        }
        harm(&store.path(3));
        let (checkpoint, damaged) = store.newest_good().unwrap();
        assert_eq!(checkpoint.unwrap().state().step, 2, "{name}");
        let [damaged] = &damaged[..] else { panic!("{name}: {damaged:?}") };
        assert!(damaged.reason.to_string().contains(words), "{name}: {}", damaged.reason);
        assert!(damaged.path.ends_with("damaged-step-00000003"));
        // It is out of the way: the next checkpoints do not count it.
        assert_eq!(store.steps().unwrap(), [1, 2]);
        write(&store, 3, 2, &[]).unwrap();
        flip(&store.path(3).join(MODEL));
        assert!(store.newest_good().unwrap().1[0].path.ends_with("damaged-step-00000003-2"));
    }
}

fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

fn cut(path: &Path) {
    let bytes = fs::read(path).unwrap();
    fs::write(path, &bytes[..bytes.len() - 5]).unwrap();
}

#[test]
fn another_version_is_refused_and_not_called_damaged() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let contents = Contents {
        model: vec![],
        optimizer: vec![],
        rng: vec![],
        state: &TrainingState { format: FORMAT + 1, ..state(1, &[]) },
    };
    store.write(&contents, 1).unwrap();
    let error = store.newest_good().unwrap_err().to_string();
    assert!(error.contains("format 2; this program reads 1"), "{error}");
}

#[test]
fn what_a_dead_process_left_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    let first = store(folder.path());
    write(&first, 1, 1, &[]).unwrap();
    let torn = folder.path().join("checkpoints/.step-00000002.tmp-4194304");
    fs::create_dir(&torn).unwrap();
    fs::write(torn.join(MODEL), "half").unwrap();
    let again = store(folder.path());
    assert!(!torn.exists());
    assert_eq!(again.steps().unwrap(), [1]);
}

#[test]
fn a_failed_write_leaves_what_was_there() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    write(&store, 1, 1, &[]).unwrap();
    // A file where the directory is to be: the system refuses, as a full disk would.
    let temporary = crate::files::temporary_sibling(&store.path(2));
    fs::write(&temporary, "").unwrap();
    let error = write(&store, 2, 1, &[]).unwrap_err().to_string();
    assert!(error.contains("earlier checkpoints are untouched"), "{error}");
    fs::remove_file(&temporary).unwrap();
    assert_eq!(store.steps().unwrap(), [1]);
    assert_eq!(store.newest_good().unwrap().0.unwrap().state().step, 1);
    write(&store, 2, 1, &[]).unwrap();
    assert_eq!(store.steps().unwrap(), [2]);
}

/// Every name below a directory.
fn names(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut names: Vec<PathBuf> = entries
        .flat_map(|path| if path.is_dir() { [names(&path), vec![path]].concat() } else { vec![path] })
        .collect();
    names.sort();
    names
}

fn step_of(reader: &CheckpointReader, which: Which) -> Result<u64, CheckpointError> {
    Ok(reader.find(which, |_| Ok(()))?.unwrap().checkpoint.state().step)
}

#[test]
fn a_reader_changes_nothing_and_passes_over_damage() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let reader = CheckpointStore::read_only(&folder.path().join("checkpoints"));
    assert!(reader.find(Which::Last, |_| Ok(())).unwrap().is_none());
    for step in [1, 2, 3] {
        write(&store, step, 3, &[2, 3]).unwrap();
    }
    let unfinished = folder.path().join("checkpoints/.step-00000004.tmp-4194304");
    fs::create_dir(&unfinished).unwrap();
    assert_eq!(step_of(&reader, Which::Last).unwrap(), 3);
    assert_eq!(step_of(&reader, Which::Best).unwrap(), 2);
    assert_eq!(step_of(&reader, Which::Step(1)).unwrap(), 1);
    let error = step_of(&reader, Which::Step(7)).unwrap_err().to_string();
    assert!(error.contains("no checkpoint of step 7; its steps are 1, 2, 3"), "{error}");

    flip(&store.path(3).join(MODEL));
    let before = names(folder.path());
    let found = reader.find(Which::Last, |_| Ok(())).unwrap().unwrap();
    assert_eq!((found.checkpoint.state().step, found.damaged.len()), (2, 1));
    assert!(step_of(&reader, Which::Step(3)).unwrap_err().to_string().contains("SHA-256 differs"));
    flip(&store.path(2).join(MODEL));
    flip(&store.path(1).join(MODEL));
    assert!(step_of(&reader, Which::Last).unwrap_err().to_string().contains("step-00000003"));
    assert_eq!(names(folder.path()), before);
}

#[test]
fn a_reader_chooses_again_when_the_trainer_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let reader = CheckpointStore::read_only(&folder.path().join("checkpoints"));
    write(&store, 1, 1, &[]).unwrap();
    let mut tries = 0;
    let found = reader.find(Which::Last, |checkpoint| {
        tries += 1;
        if tries == 1 {
            write(&store, 2, 1, &[]).unwrap(); // and 1 is gone
        }
        checkpoint.model()?.read("w")
    });
    let found = found.unwrap().unwrap();
    assert_eq!((found.checkpoint.state().step, found.value.int64_value(&[0])), (2, 2));
}

#[test]
fn without_evaluations_there_is_no_best() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    write(&store, 1, 1, &[]).unwrap();
    let reader = CheckpointStore::read_only(&folder.path().join("checkpoints"));
    let error = step_of(&reader, Which::Best).unwrap_err().to_string();
    assert!(error.contains("keep_best") && error.contains("steps are 1"), "{error}");
}
