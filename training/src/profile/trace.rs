//! Reading a Chrome trace of libtorch's profiler.

use std::{
    collections::HashMap,
    fs::File,
    io::BufReader,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::work::{self, Work};

/// Why a trace could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TraceError {
    /// The file cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// The trace.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is no trace.
    #[error("{path} is no trace of libtorch's profiler: {source}")]
    Json {
        /// The trace.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
}

#[derive(Deserialize)]
struct Trace {
    #[serde(rename = "traceEvents")]
    events: Vec<Event>,
}

#[derive(Deserialize)]
struct Event {
    #[serde(default)]
    ph: String,
    #[serde(default)]
    cat: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    tid: serde_json::Value,
    #[serde(default)]
    ts: f64,
    #[serde(default)]
    dur: f64,
    #[serde(default)]
    args: Arguments,
}

#[derive(Deserialize, Default)]
struct Arguments {
    #[serde(rename = "External id")]
    id: Option<u64>,
    #[serde(rename = "Input Dims", default)]
    shapes: Vec<serde_json::Value>,
    #[serde(rename = "Input type", default)]
    types: Vec<String>,
}

/// What one run of an operation cost on the device, or on the CPU without what it called.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Cost {
    /// The operator.
    pub(super) operation: String,
    /// Its longest kernel; nothing on the CPU.
    pub(super) kernel: Option<String>,
    pub(super) seconds: f64,
    /// Kernels, copies and fills that it gave to the device.
    pub(super) launches: u64,
    pub(super) work: Work,
}

/// The costs in a trace: of kernels where it has any, otherwise of the CPU's operators.
pub(super) fn read(path: &Path) -> Result<(bool, Vec<Cost>), TraceError> {
    let file = File::open(path).map_err(|source| TraceError::Io { path: path.to_owned(), source })?;
    let trace: Trace = serde_json::from_reader(BufReader::new(file))
        .map_err(|source| TraceError::Json { path: path.to_owned(), source })?;
    let on_device = trace.events.iter().any(|event| event.cat == "kernel");
    Ok((on_device, if on_device { device_costs(&trace.events) } else { host_costs(&trace.events) }))
}

fn is_operator(event: &Event) -> bool {
    event.ph == "X" && event.cat == "cpu_op"
}

fn work_of(event: &Event) -> Work {
    work::of(&event.name, &event.args.shapes, &event.args.types)
}

fn device_costs(events: &[Event]) -> Vec<Cost> {
    let operators: HashMap<u64, &Event> = events
        .iter()
        .filter(|event| is_operator(event))
        .filter_map(|event| Some((event.args.id?, event)))
        .collect();
    // By the run of an operator; what belongs to none stands alone.
    let mut costs: HashMap<Option<u64>, Cost> = HashMap::new();
    let mut longest: HashMap<Option<u64>, f64> = HashMap::new();
    for event in events.iter().filter(|event| event.ph == "X") {
        if !["kernel", "gpu_memcpy", "gpu_memset"].contains(&event.cat.as_str()) {
            continue;
        }
        let id = event.args.id.filter(|id| operators.contains_key(id));
        let cost = costs.entry(id).or_insert_with(|| {
            let operator = id.and_then(|id| operators.get(&id));
            Cost {
                operation: operator.map_or("(none)".to_owned(), |event| work::name(&event.name).to_owned()),
                kernel: None,
                seconds: 0.0,
                launches: 0,
                work: operator.map(|event| work_of(event)).unwrap_or_default(),
            }
        });
        cost.seconds += event.dur * 1e-6;
        cost.launches += 1;
        let most = longest.entry(id).or_default();
        if event.dur >= *most {
            *most = event.dur;
            cost.kernel = Some(event.name.clone());
        }
    }
    costs.into_values().collect()
}

fn host_costs(events: &[Event]) -> Vec<Cost> {
    let mut threads: HashMap<String, Vec<&Event>> = HashMap::new();
    for event in events.iter().filter(|event| is_operator(event)) {
        threads.entry(event.tid.to_string()).or_default().push(event);
    }
    let mut costs = Vec::new();
    for events in threads.values_mut() {
        // Callers before what they call.
        events.sort_by(|a, b| a.ts.total_cmp(&b.ts).then(b.dur.total_cmp(&a.dur)));
        let mut open: Vec<(f64, usize)> = Vec::new();
        for event in events {
            while open.last().is_some_and(|(end, _)| *end <= event.ts) {
                open.pop();
            }
            if let Some((_, caller)) = open.last() {
                let caller: &mut Cost = &mut costs[*caller];
                caller.seconds -= event.dur * 1e-6;
                // The work is that of what it calls, but for products, which only look at their operands first.
                if caller.work.flops.is_none() {
                    caller.work = Work::default();
                }
            }
            open.push((event.ts + event.dur, costs.len()));
            costs.push(Cost {
                operation: work::name(&event.name).to_owned(),
                kernel: None,
                seconds: event.dur * 1e-6,
                launches: 0,
                work: work_of(event),
            });
        }
    }
    costs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn costs(events: &str) -> Vec<Cost> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("{{\"traceEvents\": [{events}]}}")).unwrap();
        let mut costs = read(file.path()).unwrap().1;
        costs.sort_by(|a, b| a.operation.cmp(&b.operation));
        costs
    }

    #[test]
    fn a_kernel_belongs_to_the_operator_that_launched_it() {
        let found = costs(
            r#"{"ph":"X","cat":"cpu_op","name":"aten::mm","tid":1,"ts":0,"dur":9,
                "args":{"External id":7,"Input Dims":[[4,8],[8,2]],"Input type":["float","float"]}},
               {"ph":"X","cat":"kernel","name":"gemm","tid":2,"ts":20,"dur":5,"args":{"External id":7}},
               {"ph":"X","cat":"kernel","name":"splitk","tid":2,"ts":26,"dur":1,"args":{"External id":7}},
               {"ph":"X","cat":"gpu_memset","name":"Memset","tid":2,"ts":30,"dur":2,"args":{"External id":99}}"#,
        );
        assert_eq!(found.len(), 2);
        let (none, product) = (&found[0], &found[1]);
        assert_eq!((none.operation.as_str(), none.launches), ("(none)", 1));
        assert_eq!((product.operation.as_str(), product.launches), ("mm", 2));
        assert_eq!(product.kernel.as_deref(), Some("gemm"));
        assert!((product.seconds - 6e-6).abs() < 1e-12);
        assert_eq!(product.work.flops, Some(2.0 * 4.0 * 8.0 * 2.0));
        assert_eq!(product.work.bytes, Some(4.0 * (32.0 + 16.0 + 8.0)));
    }

    #[test]
    fn an_operator_of_the_cpu_costs_what_those_it_calls_do_not() {
        let found = costs(
            r#"{"ph":"X","cat":"cpu_op","name":"aten::linear","tid":1,"ts":0,"dur":10},
               {"ph":"X","cat":"cpu_op","name":"aten::t","tid":1,"ts":1,"dur":2},
               {"ph":"X","cat":"cpu_op","name":"aten::addmm","tid":1,"ts":4,"dur":5},
               {"ph":"X","cat":"cpu_op","name":"aten::add","tid":1,"ts":12,"dur":1}"#,
        );
        let seconds: Vec<_> = found.iter().map(|cost| (cost.seconds * 1e6).round() as i64).collect();
        assert_eq!(seconds, [1, 5, 3, 2], "add, addmm, linear, t");
    }

    #[test]
    fn what_is_no_trace_is_refused_by_its_name() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "nonsense").unwrap();
        let error = read(file.path()).unwrap_err().to_string();
        assert!(error.contains("is no trace") && error.contains(&*file.path().to_string_lossy()), "{error}");
        assert!(read(Path::new("/nowhere/trace.json")).is_err());
    }
}
