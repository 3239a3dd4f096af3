//! `smidgen colocate` and `smidgen doctor` as a user without a GPU meets them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

const CHAT: &str = "chat=llama-3.2-1b,class=latency,slo=5ms,batch=8,seq=128";
const EMBED: &str = "embed=bert-large,batch=64,seq=128";

fn profile() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("profiles/h200.json")
}

fn smidgen(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_smidgen")).current_dir(folder).args(args).output().unwrap()
}

/// `smidgen colocate` on the simulator, writing `out.json` and `out.html` in `folder`.
fn colocate(folder: &Path, tenants: &[&str], policies: &str) -> Output {
    colocate_for("0.2s", folder, tenants, policies)
}

fn colocate_for(duration: &str, folder: &Path, tenants: &[&str], policies: &str) -> Output {
    let profile = profile();
    let mut args = vec!["colocate", "--device", "sim", "--duration", duration, "--json", "out.json", "--html", "out.html"];
    args.extend(["--profile", profile.to_str().unwrap(), "--policy", policies]);
    args.extend(tenants.iter().flat_map(|tenant| ["--tenant", tenant]));
    smidgen(folder, &args)
}

fn succeeded(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn json(folder: &Path) -> Value {
    serde_json::from_slice(&fs::read(folder.join("out.json")).unwrap()).unwrap()
}

/// The one line of a command that must fail, in a folder that stays empty.
fn refused(folder: &Path, output: &Output) -> String {
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "", "a result although it failed");
    assert_eq!(fs::read_dir(folder).unwrap().count(), 0, "something was written: {stderr}");
    let line = stderr.strip_prefix("error: ").and_then(|line| line.strip_suffix('\n')).unwrap_or_else(|| panic!("{stderr}"));
    assert!(!line.contains('\n'), "more than one line: {line}");
    line.to_owned()
}

#[track_caller]
fn names_all(line: &str, parts: &[&str]) {
    for part in parts {
        assert!(line.contains(part), "`{part}` is missing: {line}");
    }
}

fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[track_caller]
fn has_keys(value: &Value, expected: &[&str]) {
    let keys = keys(value);
    for key in expected {
        assert!(keys.contains(key), "`{key}` is missing: {keys:?}");
    }
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("`{key}` is no number: {value}"))
}

#[test]
fn the_json_has_the_documented_form_and_its_figures_agree() {
    let folder = TempDir::new().unwrap();
    let policies = "time-slice,mps-default,static-equal,krisp-i,slo,slo:no-borrow+no-guard";
    succeeded(&colocate(folder.path(), &[CHAT, EMBED], policies));
    let result = json(folder.path());
    assert_eq!(keys(&result), BTreeSet::from(["provenance", "alone", "policies"]));
    let provenance = &result["provenance"];
    has_keys(provenance, &["command", "commit", "gpu", "sms", "driver", "date", "simulated"]);
    assert_eq!((&provenance["simulated"], &provenance["gpu"], &provenance["sms"]), (&true.into(), &"NVIDIA H200".into(), &132.into()));
    names_all(provenance["command"].as_str().unwrap(), &["smidgen colocate", "--device sim", EMBED, policies]);

    let alone = result["alone"].as_array().unwrap();
    assert_eq!(alone.iter().map(|tenant| &tenant["name"]).collect::<Vec<_>>(), ["chat", "embed"]);
    for tenant in alone {
        has_keys(tenant, &["throughput", "p50_ms", "p95_ms", "p99_ms"]);
        assert!(number(tenant, "throughput") > 0.0);
    }

    let found: Vec<_> = result["policies"].as_array().unwrap().iter().map(|policy| policy["policy"].as_str().unwrap()).collect();
    assert_eq!(
        found.join(","),
        policies.replace("mps-default", "mps-default,mps-default:tiles"),
        "MPS runs with both forms of the kernels"
    );
    for policy in result["policies"].as_array().unwrap() {
        has_keys(policy, &["policy", "tenants", "total_normalised_throughput", "fairness"]);
        let mut total = 0.0;
        for ((tenant, alone), class) in policy["tenants"].as_array().unwrap().iter().zip(alone).zip(["latency", "throughput"]) {
            has_keys(tenant, &["name", "class", "throughput", "p50_ms", "p95_ms", "p99_ms", "slowdown"]);
            assert_eq!((&tenant["name"], &tenant["class"]), (&alone["name"], &class.into()));
            let quantiles = ["p50_ms", "p95_ms", "p99_ms"].map(|quantile| number(tenant, quantile));
            assert!(quantiles.is_sorted() && quantiles[0] > 0.0, "{quantiles:?}");
            assert!(number(tenant, "slowdown") > 0.99, "no tenant is faster beside another");
            total += number(tenant, "throughput") / number(alone, "throughput");
        }
        assert!((number(policy, "total_normalised_throughput") - total).abs() < 1e-9);
        assert!((0.0..=1.0).contains(&number(policy, "fairness")));
    }
}

#[test]
fn every_line_of_a_simulated_run_says_so() {
    let folder = TempDir::new().unwrap();
    let output = colocate(folder.path(), &[CHAT, EMBED], "mps-default,krisp-i");
    let stdout = succeeded(&output);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stdout.lines().count() >= 8, "{stdout}");
    for line in stdout.lines().chain(stderr.lines()) {
        assert!(line.contains("SIMULATED"), "{line}");
    }
    names_all(&stdout, &["chat", "embed", "mps-default", "krisp-i", "wrote out.json", "wrote out.html"]);
}

#[test]
fn the_report_is_one_page_that_loads_nothing_and_says_that_it_is_simulated() {
    let folder = TempDir::new().unwrap();
    succeeded(&colocate(folder.path(), &[CHAT, EMBED], "static-equal"));
    let page = fs::read_to_string(folder.path().join("out.html")).unwrap();
    assert!(page.trim_start().to_lowercase().starts_with("<!doctype html>") && page.trim_end().ends_with("</html>"));
    names_all(&page, &["SIMULATED", "<svg", "chat", "embed", "static-equal"]);
    for reference in ["src=", "<link", "@import", "url(", "fetch(", "XMLHttpRequest"] {
        assert!(!page.contains(reference), "the page refers to something outside of it by `{reference}`");
    }
    let mut addresses = page.match_indices("http").map(|(at, _)| &page[at..(at + 40).min(page.len())]);
    assert!(addresses.all(|address| address.starts_with("http://www.w3.org/")), "namespaces are the only addresses");
}

#[test]
fn equal_runs_give_equal_results_in_closed_loop_and_at_a_rate() {
    let folder = TempDir::new().unwrap();
    let chat = format!("{CHAT},rate=100/s");
    let run = || {
        succeeded(&colocate(folder.path(), &[&chat, EMBED], "default-sharing,krisp-o"));
        let mut result = json(folder.path());
        assert!(result["provenance"]["date"].take().is_string());
        result
    };
    let first = run();
    assert_eq!(first, run());
    for policy in first["policies"].as_array().unwrap() {
        let requests = number(&policy["tenants"][0], "requests");
        // 20 are expected in 0.2 s; the arrivals are a fixed sequence, so this holds always or never.
        assert!((8.0..=40.0).contains(&requests), "{requests} requests at 100/s");
    }
    // Alone is saturated, whatever the rate.
    assert!(number(&first["alone"][0], "throughput") > 300.0);
}

#[test]
fn simulated_baselines_say_once_which_kernels_no_profile_holds() {
    let folder = TempDir::new().unwrap();
    // Nothing measured has 77 tokens.
    let stdout = succeeded(&colocate(folder.path(), &["odd=bert-large,batch=3,seq=77", EMBED], "time-slice,mps-percent:25/75:tiles"));
    let notices: Vec<_> = stdout.lines().filter(|line| line.contains("have no profile")).collect();
    let [notice] = notices[..] else { panic!("{stdout}") };
    names_all(notice, &["SIMULATED", "kernels of tenant odd", "smidgen profile --device sim --model bert-large --batch 3 --seq 77"]);
}

#[test]
fn exclusive_tenants_take_turns_request_by_request() {
    let folder = tempfile::tempdir().unwrap();
    succeeded(&colocate(folder.path(), &["chat=llama-3.2-1b", "embed=bert-large"], "exclusive"));
    let policy = &json(folder.path())["policies"][0];
    let requests: Vec<f64> = policy["tenants"].as_array().unwrap().iter().map(|tenant| number(tenant, "requests")).collect();
    assert!((requests[0] - requests[1]).abs() <= 1.0, "turns do not go round: {requests:?}");
    let total = number(policy, "total_normalised_throughput");
    assert!((0.95..1.05).contains(&total), "one at a time, two tenants do {total} times what one does");
}

/// Requests that still waited, of a tenant to which 4000 come a second: nearly all that it did not serve.
fn waiting_of_4000_a_second(tenant: &Value) -> f64 {
    let [served, waiting] = [number(tenant, "throughput") * 0.2, number(tenant, "waiting")];
    assert!(
        (served + waiting) / (4000.0 * (0.2 + 0.3)) > 0.8,
        "{served} served and {waiting} waiting of 4000 a second, 0.3 s before the window too"
    );
    waiting
}

#[test]
fn a_tenant_that_cannot_keep_up_is_judged_by_the_requests_it_did_not_serve_too() {
    let folder = TempDir::new().unwrap();
    let stdout = succeeded(&colocate(folder.path(), &["chat=llama-3.2-1b,class=latency,slo=5ms,rate=4000", EMBED], "static-equal"));
    let result = json(folder.path());
    let chat = &policy(&result, "static-equal")["tenants"][0];
    let waiting = waiting_of_4000_a_second(chat);
    assert!(number(chat, "slo_attainment") < 0.05 && number(chat, "p99_ms") > 200.0, "{chat}");
    names_all(&stdout, &[&format!("static-equal, chat: {waiting} requests still waited")]);
}

#[test]
fn a_stream_that_cannot_keep_up_is_judged_by_the_requests_it_did_not_serve_too() {
    const STREAM: &str = "chat=llama-3.2-1b,class=latency,slo=10ms,rate=4000,batch=8,prompt=200,generate=16,chunk=64";
    let folder = TempDir::new().unwrap();
    let stdout = succeeded(&colocate(folder.path(), &[STREAM, EMBED], "static-equal"));
    let result = json(folder.path());
    let chat = &policy(&result, "static-equal")["tenants"][0];
    let waiting = waiting_of_4000_a_second(chat);
    // Those that were served had their tokens in time, once they had the first.
    let per_token = chat["stream"]["per_token_ms"][0].as_f64().unwrap();
    assert!(per_token < 10.0, "{per_token} ms");
    assert!(number(chat, "slo_attainment") < 0.2 && number(chat, "p99_ms") > 200.0, "{chat}");
    assert!(chat["stream"]["first_token_ms"][2].as_f64().unwrap() > 200.0, "{chat}");
    names_all(&stdout, &[&format!("static-equal, chat: {waiting} requests still waited")]);
    let page = fs::read_to_string(folder.path().join("out.html")).unwrap();
    names_all(&page, &[&format!("{waiting} still waited")]);
}

#[test]
fn a_decoder_serves_a_stream_of_requests_beside_another_tenant() {
    const STREAM: &str = "chat=llama-3.2-1b,class=latency,slo=20ms,batch=8,prompt=200,generate=16,chunk=64";
    let folder = TempDir::new().unwrap();
    let stdout = succeeded(&colocate(folder.path(), &[STREAM, EMBED], "exclusive,static-equal,krisp-i"));
    names_all(&stdout, &["kernels of tenant chat have no profile, and of a stream's steps none is made yet"]);
    let head = stdout.lines().find(|line| line.contains("tokens/s")).unwrap_or_else(|| panic!("{stdout}"));
    names_all(head, &["first token p50 ms", "per token p50 ms"]);
    let result = json(folder.path());
    let policies = result["policies"].as_array().unwrap();
    for tenants in policies.iter().map(|policy| &policy["tenants"]).chain([&result["alone"]]) {
        let [chat, embed] = [0, 1].map(|at| &tenants[at]);
        assert!(embed.get("stream").is_none() && number(embed, "throughput") > 0.0);
        let stream = &chat["stream"];
        let (requests, tokens) = (number(chat, "throughput"), number(stream, "tokens_per_second"));
        assert!(requests > 0.0 && (tokens / requests - 16.0).abs() < 1e-6, "{tokens} tokens of {requests} requests");
        // A request's latency is the time to its first token and 15 gaps.
        let [first, gap] = ["first_token_ms", "per_token_ms"].map(|key| stream[key][0].as_f64().unwrap());
        let latency = number(chat, "p50_ms");
        assert!((latency / (first + 15.0 * gap) - 1.0).abs() < 0.2, "{latency} ms of {first} ms and 15 times {gap} ms");
        assert_eq!(number(chat, "slo_attainment"), 1.0, "the objective is for a token, not for a request of {latency} ms");
    }
}

fn policy<'a>(result: &'a Value, name: &str) -> &'a Value {
    result["policies"].as_array().unwrap().iter().find(|policy| policy["policy"] == name).unwrap_or_else(|| panic!("no {name}: {result}"))
}

fn p99_ms(result: &Value, name: &str, tenant: usize) -> f64 {
    number(&policy(result, name)["tenants"][tenant], "p99_ms")
}

#[test]
fn mps_lets_latency_tenants_in_between_the_tiles_of_others_where_it_knows_their_priority() {
    let folder = TempDir::new().unwrap();
    let stdout = succeeded(&colocate(folder.path(), &[CHAT, "bulk=bert-large,batch=64"], "mps-default,mps-priority"));
    names_all(&stdout, &["mps-default:tiles", "mps-priority:tiles"]);
    assert!(stdout.lines().all(|line| line.contains("SIMULATED")), "{stdout}");
    let result = json(folder.path());
    let [default, priority] = ["mps-default:tiles", "mps-priority:tiles"].map(|name| p99_ms(&result, name, 0));
    assert!(priority < 0.9 * default, "{priority} ms with priority, {default} ms without");
    let persistent = p99_ms(&result, "mps-priority", 0);
    assert!(priority < persistent, "{priority} ms between tiles, {persistent} ms beside persistent blocks");
    names_all(&fs::read_to_string(folder.path().join("out.html")).unwrap(), &["mps-priority:tiles", "SIMULATED"]);
}

#[test]
fn mps_percentages_keep_tenants_to_their_part_of_the_sms() {
    let folder = TempDir::new().unwrap();
    succeeded(&colocate(folder.path(), &[CHAT, EMBED], "mps-percent,mps-percent:25/75,mps-percent:75/25:tiles"));
    let result = json(folder.path());
    let names: Vec<_> = result["policies"].as_array().unwrap().iter().map(|policy| policy["policy"].as_str().unwrap()).collect();
    assert_eq!(names, ["mps-percent", "mps-percent:tiles", "mps-percent:25/75", "mps-percent:25/75:tiles", "mps-percent:75/25:tiles"]);
    let sms = |name| [0, 1].map(|tenant| number(&policy(&result, name)["tenants"][tenant], "sms"));
    assert_eq!((sms("mps-percent"), sms("mps-percent:25/75")), ([66.0, 66.0], [32.0, 98.0]));
    let throughput = |name| number(&policy(&result, name)["tenants"][1], "throughput");
    assert!(throughput("mps-percent:25/75") > 1.5 * throughput("mps-percent:75/25:tiles"), "three times the SMs");

    let refused_folder = TempDir::new().unwrap();
    let line = refused(refused_folder.path(), &colocate(refused_folder.path(), &[CHAT, EMBED], "mps-percent:50/25/25"));
    names_all(&line, &["mps-percent:50/25/25", "3 tenants", "the run has 2"]);
}

#[test]
fn a_load_is_a_share_of_what_the_tenant_does_alone_and_an_objective_may_be_relative() {
    let folder = TempDir::new().unwrap();
    let chat = "chat=llama-3.2-1b,class=latency,load=0.3,slo=1.5x";
    let stdout = succeeded(&colocate(folder.path(), &[chat, EMBED], "static-equal"));
    names_all(&stdout, &["alone at its rate"]);
    let result = json(folder.path());
    let alone = &result["alone"][0];
    let [at_rate] = &result["alone_at_rate"].as_array().unwrap()[..] else { panic!("{result}") };
    let chat = &policy(&result, "static-equal")["tenants"][0];
    for tenant in [at_rate, chat] {
        assert_eq!(tenant["name"], "chat");
        let load = number(tenant, "rate") / number(alone, "throughput");
        assert!((load - 0.3).abs() < 1e-9, "a load of {load}");
        let served = number(tenant, "throughput") / number(alone, "throughput");
        assert!((0.2..0.4).contains(&served), "{served} of what it does alone at a load of 0.3");
    }
    assert!(number(at_rate, "p99_ms") > number(alone, "p99_ms"), "requests that come at random queue");
    assert!((number(chat, "slo_ms") / number(at_rate, "p99_ms") - 1.5).abs() < 1e-9);
    assert!(alone.get("rate").is_none() && result["alone"][1].get("slo_ms").is_none());
}

#[test]
fn a_prefill_tenant_saturates_the_gpu_beside_a_decoding_one() {
    let folder = TempDir::new().unwrap();
    let prefill = "prefill=mistral-7b,batch=1,seq=8192,phase=prefill";
    let profile = profile();
    let args = ["colocate", "--device", "sim", "--duration", "2s", "--json", "out.json", "--profile", profile.to_str().unwrap()];
    let more = ["--policy", "static-equal", "--tenant", CHAT, "--tenant", prefill];
    succeeded(&smidgen(folder.path(), &[&args[..], &more].concat()));
    let result = json(folder.path());
    let alone = &result["alone"][1];
    // 7.1 billion weights, 8192 tokens and causal attention over them are 128 TFLOP; the GPU does 640 a second at most.
    assert!((150.0..1000.0).contains(&number(alone, "p50_ms")), "{alone}");
    assert!(number(alone, "requests") >= 2.0, "{alone}");
}

#[test]
fn four_encoders_share_the_gpu() {
    let folder = TempDir::new().unwrap();
    let tenants = ["a", "b", "c", "d"].map(|name| format!("{name}=bert-base,batch=8"));
    let tenants: Vec<_> = tenants.iter().map(String::as_str).collect();
    succeeded(&colocate(folder.path(), &tenants, "mps-percent,static-equal"));
    let result = json(folder.path());
    for tenant in policy(&result, "mps-percent")["tenants"].as_array().unwrap() {
        assert_eq!(number(tenant, "sms"), 32.0, "a quarter, in whole TPCs");
        assert!(number(tenant, "throughput") > 0.0);
    }
}

#[test]
fn a_reader_who_has_seen_enough_takes_no_file_away() {
    let folder = TempDir::new().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_smidgen"));
    command.current_dir(folder.path()).args(["colocate", "--device", "sim", "--duration", "0.05s", "--policy", "static-equal"]);
    command.args(["--tenant", EMBED, "--json", "out.json", "--profile", profile().to_str().unwrap()]);
    let mut running = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(running.stdout.take());
    let output = running.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    has_keys(&json(folder.path()), &["alone", "policies"]);
}

#[test]
fn the_simulator_runs_in_any_folder_by_the_profile_that_is_built_in_and_says_so() {
    let folder = TempDir::new().unwrap();
    let common = ["colocate", "--device", "sim", "--tenant", EMBED, "--policy", "krisp-i", "--duration", "0.1s", "--json", "out.json"];
    let stdout = succeeded(&smidgen(folder.path(), &common));
    names_all(&stdout, &["SIMULATED  profiles/h200.json is not in this folder: the one built into smidgen is used"]);
    let built_in = json(folder.path());
    names_all(built_in["provenance"]["command"].as_str().unwrap(), &["smidgen colocate", "profiles/h200.json", "built into smidgen"]);
    // It is the shipped one.
    let stdout = succeeded(&smidgen(folder.path(), &[&common[..], &["--profile", profile().to_str().unwrap()]].concat()));
    assert!(!stdout.contains("built into"), "{stdout}");
    assert_eq!(json(folder.path())["policies"], built_in["policies"]);
    // The demo too, and where it has the file it says nothing.
    names_all(
        &succeeded(&smidgen(folder.path(), &["demo", "--device", "sim", "--duration", "0.1s"])),
        &["built into smidgen", "demo.html"],
    );
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = folder.path().join("out");
    let stdout = succeeded(&smidgen(here, &["demo", "--device", "sim", "--duration", "0.1s", "--out", out.to_str().unwrap()]));
    assert!(!stdout.contains("built into"), "{stdout}");
}

#[test]
fn a_duration_has_the_units_of_an_objective() {
    for duration in ["0.1", "0.1s", "100ms", "100000us"] {
        let folder = TempDir::new().unwrap();
        succeeded(&colocate_for(duration, folder.path(), &["embed=bert-large,batch=8,seq=128"], "exclusive"));
        assert_eq!(number(&json(folder.path())["provenance"], "seconds"), 0.1, "{duration}");
    }
}

#[test]
fn what_waiting_does_to_a_tenant_by_itself_is_no_slowdown() {
    let folder = TempDir::new().unwrap();
    succeeded(&colocate_for("1s", folder.path(), &["chat=llama-3.2-1b,class=latency,load=0.9"], "static-equal"));
    let result = json(folder.path());
    assert!(number(&result["alone_at_rate"][0], "mean_ms") > 1.5 * number(&result["alone"][0], "mean_ms"), "it waits for itself");
    let slowdown = number(&result["policies"][0]["tenants"][0], "slowdown");
    assert!((slowdown - 1.0).abs() < 0.05, "all SMs are its own, and yet it is {slowdown} times slower");
}

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

/// The latency and the throughput tenant with lending, and without.
fn with_and_without_lending(slo: &str, rate: &str, duration: &str) -> [[Value; 2]; 2] {
    let folder = TempDir::new().unwrap();
    let chat = format!("chat=llama-3.2-1b,class=latency,batch=8,seq=128,slo={slo},rate={rate}");
    succeeded(&colocate_for(duration, folder.path(), &[&chat, EMBED], "slo,slo:no-borrow"));
    let result = json(folder.path());
    [0, 1].map(|policy| [0, 1].map(|tenant| result["policies"][policy]["tenants"][tenant].clone()))
}

#[test]
fn a_throughput_tenant_is_faster_on_what_an_idle_latency_tenant_lends() {
    let [[_, with], [_, without]] =
        with_and_without_lending("1.3ms", "50/s", "0.5s").map(|tenants| tenants.map(|tenant| number(&tenant, "throughput")));
    assert!(with > 1.1 * without, "{with} requests per second, {without} without lending");
}

#[test]
fn a_latency_tenant_that_lends_between_requests_keeps_its_slo() {
    // So few that none waits for another.
    let [[with, _], [without, _]] =
        with_and_without_lending("5ms", "5/s", "4s").map(|tenants| tenants.map(|tenant| number(&tenant, "p99_ms")));
    assert!(without <= 5.0, "{without} ms without lending");
    assert!(with <= 5.0, "{with} ms, {without} ms without lending");
}
