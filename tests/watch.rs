//! What `smidgen colocate` shows of itself, as a user without a GPU meets it: a timeline, metrics for Prometheus, and `smidgen top`.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

const CHAT: &str = "chat=llama-3.2-1b,class=latency,slo=5ms,batch=8,seq=128";
const EMBED: &str = "embed=bert-large,batch=8,seq=128";

fn smidgen() -> Command {
    Command::new(env!("CARGO_BIN_EXE_smidgen"))
}

/// `smidgen colocate` on the simulator, with `more` arguments.
fn colocate(duration: &str, policies: &str, more: &[&str]) -> Command {
    let profile: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("profiles/h200.json");
    let mut command = smidgen();
    command.args(["colocate", "--device", "sim", "--duration", duration, "--policy", policies, "--tenant", CHAT, "--tenant", EMBED]);
    command.arg("--profile").arg(profile).args(more);
    command
}

fn succeeded(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The one line of a command that must fail.
fn refused(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty());
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    stderr
}

/// A run that goes on until it is dropped, and where it shows its metrics.
struct Running {
    child: Child,
    address: String,
}

impl Running {
    fn start() -> Self {
        Self::spawn(&mut colocate("3600s", "krisp-i", &["--metrics", "127.0.0.1:0"]))
    }

    fn spawn(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("SIMULATED"), "{line}");
        let address = line.split("http://").nth(1).and_then(|rest| rest.strip_suffix("/metrics\n")).unwrap_or_else(|| panic!("{line}"));
        Self { address: address.to_owned(), child }
    }

    fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.address).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// `/metrics`, once it has figures of a tenant.
    fn metrics(&self) -> String {
        let begun = Instant::now();
        loop {
            let text = self.get("/metrics");
            if text.contains("smidgen_request_seconds{") {
                return text;
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "{text}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(unix)]
#[test]
fn a_run_that_will_write_a_file_ends_by_a_signal_but_not_by_one_that_it_was_told_to_ignore() {
    use std::os::unix::process::ExitStatusExt;

    let folder = TempDir::new().unwrap();
    let json = folder.path().join("out.json");
    let run = colocate("3600s", "krisp-i", &["--metrics", "127.0.0.1:0", "--json", json.to_str().unwrap()]);
    // As `nohup` has it.
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' HUP; exec \"$@\"", "sh"]).arg(run.get_program()).args(run.get_args());
    let mut running = Running::spawn(&mut command);
    let id = running.child.id().to_string();
    let tell = |signal: &str| assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
    tell("-HUP");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(running.child.try_wait().unwrap(), None, "it goes on");
    tell("-TERM");
    assert_eq!(running.child.wait().unwrap().signal(), Some(15));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left behind");
}

#[test]
fn a_run_writes_a_timeline_of_its_policies_and_not_of_baselines() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("out.json");
    let stdout = succeeded(&colocate("0.05s", "mps-default,static-equal,krisp-i", &["--trace", path.to_str().unwrap()]).output().unwrap());
    assert!(stdout.lines().all(|line| line.starts_with("SIMULATED")), "{stdout}");
    let json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let events = json["traceEvents"].as_array().unwrap();
    let processes: Vec<_> =
        events.iter().filter(|event| event["name"] == "process_name").map(|event| event["args"]["name"].as_str().unwrap()).collect();
    let expected =
        ["static-equal", "krisp-i"].map(|policy| ["runtime (132 SMs)", "chat", "embed"].map(|of| format!("SIMULATED {policy}: {of}")));
    assert_eq!(processes, expected.concat());
    // Every kernel of the simulator is on the track of a tenant's partition, and the names are kernel keys.
    let bars = events.iter().filter(|event| event["ph"] == "X");
    let (replays, kernels): (Vec<_>, Vec<_>) = bars.partition(|event| event["name"] == "graph replay");
    assert!(replays.len() > 50 && replays.iter().all(|event| event["dur"].as_f64() > Some(100.0)), "{}", replays.len());
    assert!(kernels.len() > 1000, "{}", kernels.len());
    assert!(kernels.iter().all(|event| event["name"].as_str().unwrap().contains('[') && event["dur"].as_f64().unwrap() > 0.0));
    let timed = events.iter().filter(|event| event["ph"] != "M").map(|event| event["ts"].as_f64().unwrap());
    assert!(timed.is_sorted());
    for kind in ["C", "b", "e", "i"] {
        assert!(events.iter().any(|event| event["ph"] == kind), "no `{kind}`");
    }
}

#[test]
fn a_timeline_that_cannot_be_written_is_refused_before_the_run() {
    let line = refused(&colocate("3600s", "krisp-i", &["--trace", "no/such/folder/out.json"]).output().unwrap());
    assert!(line.contains("no/such/folder/out.json"), "{line}");
}

#[test]
fn a_running_colocation_answers_prometheus() {
    let run = Running::start();
    let text = run.metrics();
    assert!(text.starts_with("HTTP/1.1 200") && text.contains("text/plain; version=0.0.4"), "{text}");
    for line in [
        "# TYPE smidgen_requests_total counter",
        "# TYPE smidgen_request_seconds summary",
        "# TYPE smidgen_sms_held gauge",
        "smidgen_phase{phase=\"chat alone\",simulated=\"true\"} 1",
        "smidgen_sms_owned{tenant=\"chat\",runtime=\"0\"} 132",
        "smidgen_slo_seconds{tenant=\"chat\",runtime=\"0\"} 0.005",
        "smidgen_slo_misses_total{tenant=\"chat\",runtime=\"0\"} 0",
    ] {
        assert!(text.lines().any(|found| found == line), "`{line}` is missing:\n{text}");
    }
    assert!(run.get("/").starts_with("HTTP/1.1 404"));
}

#[test]
fn top_prints_one_table_and_ends_where_there_is_no_terminal() {
    let run = Running::start();
    run.metrics();
    let stdout = succeeded(&smidgen().args(["top", "--connect", &run.address]).output().unwrap());
    let lines: Vec<_> = stdout.lines().collect();
    assert_eq!(lines.len(), 3, "{stdout}");
    assert!(lines.iter().all(|line| line.starts_with("SIMULATED  ")), "{stdout}");
    assert!(lines[0].contains("chat alone") && lines[1].contains("p99 ms"), "{stdout}");
    let row: Vec<_> = lines[2].split_whitespace().collect();
    assert_eq!((row[1], row[5], row[6]), ("chat", "5.000", "100.0%"), "{stdout}");
    let (p50, p99): (f64, f64) = (row[3].parse().unwrap(), row[4].parse().unwrap());
    assert!(p50 > 0.0 && p50 <= p99, "{stdout}");
    assert_eq!(row[7..], ["132", "132", "0"], "{stdout}");
}

#[test]
fn top_says_what_to_start_where_nothing_answers() {
    // A port that was free a moment ago.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let line = refused(&smidgen().args(["top", "--connect", &address]).output().unwrap());
    assert!(line.contains(&format!("nothing answers at {address}")) && line.contains(&format!("--metrics {address}")), "{line}");
}

#[test]
fn an_address_that_is_taken_is_refused_before_the_run() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let line = refused(&colocate("3600s", "krisp-i", &["--metrics", &address]).output().unwrap());
    assert!(line.contains(&format!("--metrics {address}: cannot listen there")), "{line}");
    let line = refused(&colocate("3600s", "krisp-i", &["--metrics", "nonsense"]).output().unwrap());
    assert!(line.contains("127.0.0.1:9464"), "{line}");
}
