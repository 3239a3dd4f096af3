//! What `smidgen colocate` and `smidgen doctor` refuse, in one line that says what to do, before anything is written.

use std::fs;

use super::*;

#[test]
fn what_is_asked_for_twice_is_refused() {
    for (args, parts) in [
        (&["--policy", "slo,slo"][..], &["`slo`", "twice"][..]),
        (&["--json", "one", "--html", "one"], &["one", "a name of its own"]),
        (&["--predict"], &["--predict", "--device sim"]),
    ] {
        let folder = TempDir::new().unwrap();
        let line = refused(folder.path(), &smidgen(folder.path(), &[&["colocate", "--device", "sim", "--tenant", EMBED], args].concat()));
        names_all(&line, parts);
    }
}

#[test]
fn a_tenant_that_cannot_run_is_refused_by_field_with_the_remedy() {
    let cases: [(&[&str], &[&str]); 23] = [
        (&["a=no-such-model"], &["no-such-model", "llama-3.2-1b"]),
        (&[EMBED, EMBED], &["`embed`", "--tenant", "a name of its own"]),
        (&["a=bert-large,seq=513"], &["`a`", "513", "512", "smaller `seq`"]),
        (&["a=bert-large,batch=100000"], &["`a`", "138.80 GB are free", "the runtime's partitions", "smaller model, batch"]),
        (&["a=llama-3.2-1b,batch=1000000,seq=131072"], &["`a`", "device memory", "smaller model, batch"]),
        (&["a=llama-3.2-1b,batch=4294967295"], &["batch `4294967295`", "1000000"]),
        (&["a=llama-3.2-1b,class=latency,slo=0.1ms"], &["`a`", "0.100 ms", "isolated latency", "raise"]),
        (&["a=bert-large,slo=1e300s"], &["slo `1e300s`", "3600s"]),
        (&["a=bert-large,rate=1e-300/s"], &["rate `1e-300/s`", "per second"]),
        (&["a=bert-large,rate=0/s"], &["rate `0/s`", "per second"]),
        (&["a=bert-large,prompt=8,generate=8"], &["`a`", "only decoders", "`prompt` and `generate`"]),
        (&["a=llama-3.2-1b,prompt=131072,generate=8"], &["`a`", "131079", "131072", "`prompt` or `generate`"]),
        (&["a=llama-3.2-1b,batch=1000000,chunk=1000000,prompt=131000,generate=8"], &["`a`", "device memory", "smaller model, batch"]),
        (&["a=llama-3.2-1b,class=latency,slo=0.1ms,prompt=8,generate=8"], &["`a`", "0.100 ms", "isolated latency", "raise the SLO"]),
        (&["a=bert-large,phase=prefill"], &["`a`", "only decoders", "`phase`"]),
        (&["a=llama-3.2-1b,phase=prefill,seq=131073,batch=1"], &["`a`", "131073", "131072", "smaller `seq`"]),
        (&["a=llama-3.2-1b,phase=prefill,seq=131072,batch=64"], &["`a`", "device memory", "smaller model, batch"]),
        (&["a=llama-3.2-1b,seq=131072,batch=1"], &["`a`", "131072 of `seq`", "a decode step adds one", "at most 131071"]),
        (&["a=bert-large,class=best"], &["class `best`", "latency", "throughput"]),
        (&["a=bert-large,batch=1,batch=2"], &["`batch` is given twice"]),
        (&["a=llama-3.2-1b", "b=no-such-model"], &["`b`", "no-such-model", "llama-3.2-1b"]),
        (&["a=bert-large,sms=0"], &["`sms`", "NAME=MODEL"]),
        (&["bert-large"], &["no `=`", "NAME=MODEL"]),
    ];
    for (tenants, parts) in cases {
        let folder = TempDir::new().unwrap();
        names_all(&refused(folder.path(), &colocate(folder.path(), tenants, "krisp-i")), parts);
    }
}

#[test]
fn a_policy_or_a_duration_that_does_not_exist_is_refused_with_those_that_do() {
    let folder = TempDir::new().unwrap();
    names_all(&refused(folder.path(), &colocate(folder.path(), &[EMBED], "krisp-i,fair")), &["`fair`", "krisp-i", "mps-default"]);
    names_all(&refused(folder.path(), &colocate(folder.path(), &[EMBED], "slo:no-borow")), &["`no-borow`", "no-borrow", "no-graphs"]);
    for duration in ["0", "49ms", "1e9s", "NaN", "soon"] {
        let args = ["colocate", "--device", "sim", "--tenant", EMBED, "--duration", duration];
        names_all(&refused(folder.path(), &smidgen(folder.path(), &args)), &["--duration", duration, "10s"]);
    }
    let line = refused(folder.path(), &smidgen(folder.path(), &["colocate", "--device", "sim"]));
    names_all(&line, &["--tenant"]);
}

#[test]
fn a_profile_that_does_not_suit_is_refused_by_file_and_field() {
    let folder = TempDir::new().unwrap();
    let profiles = TempDir::new().unwrap();
    let sound = fs::read_to_string(profile()).unwrap();
    let cases: [(&str, Option<String>, &[&str]); 6] = [
        ("missing.json", None, &["cannot be read", "smidgen profile"]),
        (
            "gpu.json",
            Some(sound.replace("\"NVIDIA H200\"", "\"NVIDIA A100\"")),
            &["NVIDIA A100", "NVIDIA H200", "smidgen profile --device sim"],
        ),
        ("sms.json", Some(sound.replacen("\"sms\": 132", "\"sms\": 144", 1)), &["144", "132", "smidgen profile"]),
        ("schema.json", Some(sound.replacen("\"schema\": 1", "\"schema\": 99", 1)), &["schema", "99", "smidgen profile"]),
        ("zero.json", Some(sound.replacen("{\"sms\": 2,", "{\"sms\": 0,", 1)), &["points[0]", "sms"]),
        ("half.json", Some(sound[..sound.len() / 2].to_owned()), &["line"]),
    ];
    for (name, contents, parts) in cases {
        let path = profiles.path().join(name);
        if let Some(contents) = contents {
            assert_ne!(contents, sound, "{name} is damaged");
            fs::write(&path, contents).unwrap();
        }
        let path = path.to_str().unwrap();
        let args = ["colocate", "--device", "sim", "--tenant", EMBED, "--policy", "krisp-i", "--profile", path, "--json", "out.json"];
        let line = refused(folder.path(), &smidgen(folder.path(), &args));
        names_all(&line, &[path]);
        names_all(&line, parts);
    }
    // What is no profile at all is nothing to delete.
    let config = profiles.path().join("config.json");
    fs::write(&config, "{\"model_type\": \"bert\"}").unwrap();
    let args = ["colocate", "--device", "sim", "--tenant", EMBED, "--profile", config.to_str().unwrap()];
    let line = refused(folder.path(), &smidgen(folder.path(), &args));
    names_all(&line, &["config.json: is no profile"]);
    assert!(!line.contains("delete"), "{line}");
}

#[test]
fn partitions_without_memory_are_refused_with_the_option_that_gives_it() {
    let folder = TempDir::new().unwrap();
    let profile = profile();
    let args = ["--tenant", EMBED, "--tenant", CHAT, "--policy", "static-equal", "--partition-memory", "0", "--duration", "0.05s"];
    let args = [&["colocate", "--device", "sim", "--profile", profile.to_str().unwrap()], &args[..]].concat();
    names_all(&refused(folder.path(), &smidgen(folder.path(), &args)), &["no room for any partition", "raise `--partition-memory`"]);
}

#[test]
fn an_output_that_cannot_be_written_is_refused_before_the_run_and_neither_file_appears() {
    let profile = profile();
    for (json, html, part) in [
        ("out.json", "missing/out.html", "missing/out.html: cannot be written"),
        ("missing/out.json", "out.html", "give a file in a folder that exists"),
        ("out.json", ".", ".: is a folder"),
        ("/proc/out.json", "out.html", "/proc/out.json: cannot be written"),
    ] {
        let folder = TempDir::new().unwrap();
        let args = ["colocate", "--device", "sim", "--tenant", EMBED, "--policy", "krisp-i", "--duration", "3600s"];
        let outputs = ["--profile", profile.to_str().unwrap(), "--json", json, "--html", html];
        names_all(&refused(folder.path(), &smidgen(folder.path(), &[&args[..], &outputs].concat())), &[part]);
    }
}

#[test]
fn an_output_never_takes_the_place_of_what_the_run_reads() {
    let folder = TempDir::new().unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    let shipped = fs::read_to_string(profile()).unwrap();
    fs::create_dir(folder.path().join("profiles")).unwrap();
    write("profiles/h200.json", &shipped);
    write("run.toml", "tenants = [\"embed=bert-large,batch=1,seq=16\"]\n");
    #[cfg(unix)]
    std::os::unix::fs::symlink("run.toml", folder.path().join("link")).unwrap();
    fs::hard_link(folder.path().join("profiles/h200.json"), folder.path().join("hard")).unwrap();
    let outputs = ["--json profiles/h200.json", "--queue ./profiles/../profiles/h200.json", "--html hard", "--trace run.toml"];
    for output in outputs.into_iter().chain(cfg!(unix).then_some("--json link")) {
        // The shipped profile counts, too, where none is named.
        for named in ["--profile profiles/h200.json", ""] {
            let args = format!("colocate --device sim --tenants run.toml --duration 0.05s --policy exclusive {named} {output}");
            let refused = smidgen(folder.path(), &args.split_whitespace().collect::<Vec<_>>());
            let stderr = String::from_utf8_lossy(&refused.stderr);
            assert_eq!(refused.status.code(), Some(2), "{args}: {stderr}");
            names_all(&stderr, &[output.split_once(' ').unwrap().1, "this very command", "give the output another name"]);
        }
    }
    assert_eq!(fs::read_to_string(profile()).unwrap(), fs::read_to_string(folder.path().join("profiles/h200.json")).unwrap());
    assert!(fs::read_to_string(folder.path().join("run.toml")).unwrap().starts_with("tenants"));
    // A device loses nothing.
    #[cfg(unix)]
    succeeded(&smidgen(
        folder.path(),
        &["colocate", "--device", "sim", "--tenants", "run.toml", "--duration", "0.05s", "--policy", "exclusive", "--json", "/dev/null"],
    ));
}

#[test]
fn an_old_result_survives_a_run_that_fails() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("out.json"), "old").unwrap();
    let output = colocate(folder.path(), &["a=llama-3.2-1b,slo=0.1ms"], "krisp-i");
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(fs::read_to_string(folder.path().join("out.json")).unwrap(), "old");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

/// Hides the GPU, where there is one, from the driver.
fn without_gpu(folder: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_smidgen"));
    command.current_dir(folder).args(args).env("CUDA_VISIBLE_DEVICES", "").env("PATH", folder).output().unwrap()
}

#[test]
fn a_run_on_a_gpu_that_is_not_there_is_refused_with_the_remedy() {
    let folder = TempDir::new().unwrap();
    for policy in ["krisp-i", "static-equal", "time-slice", "mps-default", "mps-priority:tiles", "mps-percent"] {
        let args = ["colocate", "--device", "cuda", "--tenant", EMBED, "--policy", policy, "--json", "out.json"];
        let line = refused(folder.path(), &without_gpu(folder.path(), &args));
        names_all(&line, &["no NVIDIA GPU", "driver", "--device sim"]);
    }
}

#[test]
fn the_demo_without_mps_names_no_option_that_it_has_not() {
    let folder = TempDir::new().unwrap();
    let output = without_gpu(folder.path(), &["demo", "--device", "cuda"]);
    let stdout = String::from_utf8(output.stdout).unwrap();
    names_all(&stdout, &["without MPS", "nvidia-compute-utils"]);
    assert!(!stdout.contains("--policy"), "{stdout}");
}

#[test]
fn doctor_without_a_gpu_says_what_is_missing_and_what_to_do() {
    let folder = TempDir::new().unwrap();
    let output = without_gpu(folder.path(), &["doctor"]);
    assert_eq!(output.status.code(), Some(2));
    let stdout = String::from_utf8(output.stdout).unwrap();
    names_all(&stdout, &["kernels", "GPU", "install the NVIDIA driver", "MPS", "the mps- baselines", "--device sim"]);
    assert!(stdout.lines().any(|line| line.trim_start().starts_with("MISSING")), "{stdout}");
}
