//! `smidgen colocate` and `smidgen doctor` as a user without a GPU meets them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

mod refusals;

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
