//! Kernels that ran without a profile, from the run that queues them to the profile that the next run places them by. Without a GPU.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

const CHAT: &str = "chat=bert-base,class=latency,slo=50ms,batch=3,seq=77";
const EMBED: &str = "embed=bert-large,batch=64,seq=128";

fn smidgen(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_smidgen")).current_dir(folder).args(args).output().unwrap()
}

fn succeeded(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// `smidgen colocate --queue` of both tenants, by the shipped profile and others. Its output, and what it has queued.
fn colocate(folder: &Path, profiles: &[&str]) -> (String, Value) {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("profiles/h200.json");
    let mut args = vec!["colocate", "--device", "sim", "--duration", "0.1s", "--policy", "slo", "--queue", "queue.json"];
    args.extend(["--tenant", CHAT, "--tenant", EMBED, "--profile", shipped.to_str().unwrap()]);
    args.extend(profiles.iter().flat_map(|profile| ["--profile", profile]));
    let stdout = succeeded(&smidgen(folder, &args));
    (stdout, serde_json::from_slice(&fs::read(folder.join("queue.json")).unwrap()).unwrap())
}

fn profile(folder: &Path) -> Output {
    smidgen(folder, &["profile", "--device", "sim", "--queue", "queue.json", "-o", "missing.json", "--sms", "8,32,64"])
}

#[test]
fn kernels_without_a_profile_are_queued_profiled_by_one_command_and_placed_by_it_afterwards() {
    let folder = TempDir::new().unwrap();
    let (stdout, queue) = colocate(folder.path(), &[]);
    let line = stdout.lines().find(|line| line.contains("have no profile")).unwrap_or_else(|| panic!("{stdout}"));
    assert!(line.contains("tenant chat") && line.contains("smidgen profile --device sim --queue queue.json -o FILE"), "{line}");
    let [queued] = &queue["tenants"].as_array().unwrap()[..] else { panic!("one tenant's kernels are queued: {queue}") };
    assert_eq!((&queued["tenant"]["name"], &queue["simulated"]), (&"chat".into(), &true.into()));
    let kernels: Vec<_> = queued["kernels"].as_array().unwrap().iter().map(|key| key.as_str().unwrap()).collect();
    assert!(kernels.len() > 3, "{kernels:?}");

    let table = succeeded(&profile(folder.path()));
    assert!(table.contains("SIMULATED  wrote missing.json"), "{table}");
    let missing: Value = serde_json::from_slice(&fs::read(folder.path().join("missing.json")).unwrap()).unwrap();
    let mut measured: Vec<_> = missing["kernels"].as_object().unwrap().keys().map(String::as_str).collect();
    let mut wanted = kernels;
    measured.sort_unstable();
    wanted.sort_unstable();
    assert_eq!(measured, wanted, "these, and no others");

    let (stdout, queue) = colocate(folder.path(), &["missing.json"]);
    assert!(!stdout.contains("have no profile"), "{stdout}");
    assert_eq!(queue["tenants"].as_array().map(Vec::len), Some(0));
    let before = fs::read(folder.path().join("missing.json")).unwrap();
    let nothing = succeeded(&profile(folder.path()));
    assert!(nothing.starts_with("SIMULATED  nothing is queued") && nothing.contains("missing.json was not written"), "{nothing}");
    assert_eq!(nothing.lines().count(), 1);
    assert_eq!(fs::read(folder.path().join("missing.json")).unwrap(), before);
}

#[test]
fn a_queue_is_only_a_part_of_what_a_request_launches_and_the_file_keeps_the_rest() {
    let folder = TempDir::new().unwrap();
    colocate(folder.path(), &[]);
    let path = folder.path().join("queue.json");
    let mut queue: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let kernels = queue["tenants"][0]["kernels"].as_array_mut().unwrap();
    let rest = kernels.split_off(1);
    kernels.push("of_another_build[1]f16".into());
    fs::write(&path, queue.to_string()).unwrap();
    let said = succeeded(&profile(folder.path()));
    assert!(said.contains("1 queued kernels of tenant chat are in no request of this build"), "{said}");
    queue["tenants"][0]["kernels"] = rest.clone().into();
    fs::write(&path, queue.to_string()).unwrap();
    succeeded(&profile(folder.path()));
    let missing: Value = serde_json::from_slice(&fs::read(folder.path().join("missing.json")).unwrap()).unwrap();
    assert_eq!(missing["kernels"].as_object().unwrap().len(), rest.len() + 1);
}

#[test]
fn a_measured_profile_is_not_gone_on_with_by_a_simulated_run_and_stays() {
    let folder = TempDir::new().unwrap();
    let (shipped, path) = (Path::new(env!("CARGO_MANIFEST_DIR")).join("profiles/h200.json"), folder.path().join("mine.json"));
    fs::copy(&shipped, &path).unwrap();
    let refused = smidgen(folder.path(), &["profile", "--device", "sim", "--model", "bert-base", "-o", "mine.json"]);
    let stderr = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(
        (refused.status.code(), &*stderr),
        (Some(2), "error: mine.json: it holds measured figures, and this run is SIMULATED; name another file with `-o`\n")
    );
    assert_eq!(fs::read(shipped).unwrap(), fs::read(path).unwrap());
}

#[cfg(unix)]
#[test]
fn an_output_that_can_be_no_profile_is_refused_before_anything_is_measured() {
    let folder = TempDir::new().unwrap();
    let fifo = folder.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    for (output, part) in [
        ("/dev/full", "is a device or a pipe; name a plain file"),
        ("/dev/null", "is a device or a pipe; name a plain file"),
        (fifo.to_str().unwrap(), "is a device or a pipe; name a plain file"),
        (".", "is a folder; name a plain file"),
        ("missing/p.json", "give a file in a folder that exists"),
    ] {
        let refused = smidgen(folder.path(), &["profile", "--device", "sim", "--model", "bert-base", "-o", output]);
        let stderr = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(2), "{stderr}");
        assert!(stderr.starts_with(&format!("error: {output}: ")) && stderr.contains(part) && stderr.lines().count() == 1, "{stderr}");
        assert!(refused.stdout.is_empty());
    }
    assert!(!folder.path().join("missing").exists());
}

#[test]
fn a_queue_of_which_nothing_can_be_measured_says_that_no_file_was_written() {
    let folder = TempDir::new().unwrap();
    colocate(folder.path(), &[]);
    let path = folder.path().join("queue.json");
    let mut queue: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    queue["tenants"][0]["kernels"] = vec!["of_another_build[1]f16"].into();
    fs::write(&path, queue.to_string()).unwrap();
    let said = succeeded(&profile(folder.path()));
    assert!(said.ends_with("SIMULATED  nothing was measured, and missing.json was not written\n"), "{said}");
    assert!(!folder.path().join("missing.json").exists());
}

#[test]
fn a_queue_that_cannot_be_used_is_refused_by_its_file() {
    let folder = TempDir::new().unwrap();
    for (text, part) in
        [(None, "cannot be read"), (Some("{"), "colocate --queue"), (Some(r#"{"schema":9,"simulated":true,"tenants":[]}"#), "schema is 9")]
    {
        if let Some(text) = text {
            fs::write(folder.path().join("queue.json"), text).unwrap();
        }
        let output = profile(folder.path());
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains("queue.json") && stderr.contains(part) && stderr.lines().count() == 1, "{stderr}");
    }
    fs::write(folder.path().join("queue.json"), r#"{"schema":1,"simulated":true,"tenants":[]}"#).unwrap();
    let onto_itself = smidgen(folder.path(), &["profile", "--device", "sim", "--queue", "queue.json", "-o", "./queue.json"]);
    let stderr = String::from_utf8_lossy(&onto_itself.stderr);
    assert!(onto_itself.status.code() == Some(2) && stderr.contains("give the output another name"), "{stderr}");
    let both = smidgen(folder.path(), &["profile", "--queue", "queue.json", "--model", "bert-base", "-o", "missing.json"]);
    assert_eq!(both.status.code(), Some(2));
}
