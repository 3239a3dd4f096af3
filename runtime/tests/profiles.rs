//! Profile files and the store, as a user of the library meets them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use smidgen_runtime::device::{CoscheduledGroups, Sms, Topology};
use smidgen_runtime::launch::{Fingerprint, Work};
use smidgen_runtime::profile::{
    Board, BoardPower, Bound, KernelProfile, Machine, MeasuredConfiguration, PeakSource, Peaks, PowerSample, Profile, ProfileError,
    ProfileStore, ProfileWarning, Provenance, SCHEMA_VERSION, SamplePoint,
};

const GEMM: &str = "gemm_bias[1024x768x3072]f16";
const BUILD: &str = "00c0ffee";

fn point(sms: u16, us: f64) -> SamplePoint {
    SamplePoint { sms: Sms(sms), median_us: us, samples_us: vec![us, us + 0.5, us * 9.0], rejected: 1, configuration: None, power: None }
}

fn profile() -> Profile {
    let gemm = KernelProfile {
        work: Work { flops: 4_831_838_208, bytes: 12_582_912 },
        launches: 12,
        blocks_per_sm: 1,
        bound: Bound::Compute,
        minimum_sms: Sms(66),
        points: vec![point(2, 460.0), point(66, 16.1), point(132, 16.0)],
    };
    let norm = KernelProfile {
        work: Work { flops: 3_145_728, bytes: 6_291_456 },
        launches: 24,
        blocks_per_sm: 2,
        bound: Bound::Latency,
        minimum_sms: Sms(2),
        points: vec![point(2, 4.1), point(132, 4.1)],
    };
    Profile {
        schema: SCHEMA_VERSION,
        provenance: Provenance {
            gpu: "NVIDIA H200".into(),
            sms: Sms(132),
            driver: "580.159.04".into(),
            kernel_build: BUILD.into(),
            models: vec!["bert-base".into()],
            command: "smidgen profile --model bert-base -o p.json".into(),
            commit: String::new(),
            date: "2026-11-21".into(),
            simulated: false,
        },
        tolerance: 0.02,
        peaks: Peaks { flops_per_s: 7.9e14, bytes_per_s: 4.64e12, source: PeakSource::Given },
        power: None,
        kernels: BTreeMap::from([(GEMM.into(), gemm), ("layer_norm[1024x768]f16".into(), norm)]),
    }
}

fn h200() -> Topology {
    Topology {
        name: "NVIDIA H200".into(),
        sms: Sms(132),
        sms_per_tpc: 2,
        tpcs_per_gpc: vec![9, 9, 8, 8, 8, 8, 8, 8],
        coscheduled: CoscheduledGroups { sms_per_group: 8, groups: 15 },
        memory_bytes: 141 << 30,
        l2_bytes: 50 << 20,
        shared_bytes_per_sm: 228 << 10,
        compute_capability: (9, 0),
        driver_version: 13000,
        driver: "580.159.04".into(),
    }
}

fn machine(topology: &Topology) -> Machine<'_> {
    Machine { topology, simulated: false, kernel_build: BUILD }
}

fn fingerprint(key: &str) -> Fingerprint {
    key.parse().unwrap()
}

/// Writes the profile as text, after `change` to it, and reads it back.
fn read_changed(change: impl FnOnce(&mut serde_json::Value)) -> (PathBuf, Result<Profile, ProfileError>) {
    let mut json = serde_json::to_value(profile()).unwrap();
    change(&mut json);
    read_text(&serde_json::to_string_pretty(&json).unwrap())
}

fn read_text(text: &str) -> (PathBuf, Result<Profile, ProfileError>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.json");
    fs::write(&path, text).unwrap();
    (path.clone(), Profile::read(&path))
}

#[test]
fn a_written_profile_reads_back_the_same_from_a_folder_that_was_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a/b/p.json");
    let mut written = profile();
    // A figure that a parser without care reads back one bit off.
    written.peaks.bytes_per_s = 1_571_920_847_491.505_1;
    written.write(&path).unwrap();
    assert_eq!(Profile::read(&path).unwrap(), written);
}

/// With the board's power, and what it drew while the GEMM ran on 66 SMs.
fn powered() -> Profile {
    let mut powered = profile();
    powered.power = Some(BoardPower { idle_w: 118.25, limit_w: 700.0, clock_mhz: 1980 });
    let sample = PowerSample { board_w: 431.5, launch_us: 16.2, clock_mhz: 1965 };
    powered.kernels.get_mut(GEMM).unwrap().points[1].power = Some(sample);
    powered
}

#[test]
fn power_is_read_back_as_written_on_the_line_of_its_point() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.json");
    powered().write(&path).unwrap();
    assert_eq!(Profile::read(&path).unwrap(), powered());
    let text = fs::read_to_string(&path).unwrap();
    let end = r#""rejected": 1, "power": {"board_w": 431.5, "launch_us": 16.2, "clock_mhz": 1965}},"#;
    assert!(text.lines().any(|line| line.starts_with(r#"        {"sms": 66, "#) && line.ends_with(end)), "{text}");
    profile().write(&path).unwrap();
    assert!(!fs::read_to_string(&path).unwrap().contains("power"), "a profile without energies is written as before there were any");
}

#[test]
fn profiles_from_before_there_were_energies_are_read_and_have_none() {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../profiles/h200.json");
    let shipped = Profile::read(&shipped).unwrap();
    let has_power = shipped.kernels.values().flat_map(|kernel| &kernel.points).any(|point| point.power.is_some());
    assert_eq!(has_power, shipped.power.is_some());
    let mut json = serde_json::to_value(profile()).unwrap();
    assert!(json.as_object_mut().unwrap().remove("power").is_none());
    let (_, read) = read_text(&json.to_string());
    assert_eq!(read.unwrap().power, None);
}

#[test]
fn a_kernel_s_energy_is_what_its_board_drew_above_idle_and_stays_when_the_kernel_turns_out_slower() {
    let (topology, path) = (h200(), Path::new("p.json"));
    let mut store = ProfileStore::default();
    store.add(path, powered(), &machine(&topology)).unwrap();
    let curve = store.curve(fingerprint(GEMM)).unwrap();
    let energy = curve.energy().unwrap();
    assert_eq!(energy.board(), Board { sms: Sms(132), idle_w: 118.25, limit_w: 700.0 });
    let at_full_clock = (431.5 - 118.25) * 16.2 * (1980.0_f64 / 1965.0).powf(1.3);
    assert!((energy.at(Sms(132)) - at_full_clock).abs() < 1e-6);
    assert_eq!(curve.scaled(1.5).energy(), curve.energy());
    assert_eq!(curve.scaled(1.5).at(Sms(132)), 24.0);
    assert!(store.curve(fingerprint("layer_norm[1024x768]f16")).unwrap().energy().is_none());
}

#[test]
fn one_measured_point_is_one_line_of_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.json");
    profile().write(&path).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    let line = r#"        {"sms": 66, "median_us": 16.1, "samples_us": [16.1, 16.6, 144.9], "rejected": 1},"#;
    assert!(text.lines().any(|found| found == line), "{text}");
    assert!(text.contains("\n    \"sms\": 132,\n"), "{text}");
    assert!(text.ends_with("}\n"));
}

#[test]
fn a_point_that_another_configuration_was_quicker_at_names_it_in_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.json");
    let mut written = profile();
    let measured = MeasuredConfiguration { name: "64x96".into(), instead_of: "128x96".into(), gain: 0.0412 };
    written.kernels.get_mut(GEMM).unwrap().points[1].configuration = Some(measured);
    written.write(&path).unwrap();
    assert_eq!(Profile::read(&path).unwrap(), written);
    let end = r#""rejected": 1, "configuration": {"name": "64x96", "instead_of": "128x96", "gain": 0.0412}},"#;
    assert_eq!(fs::read_to_string(&path).unwrap().lines().filter(|line| line.ends_with(end)).count(), 1);
}

#[test]
fn a_profile_from_before_configurations_were_measured_reads_and_is_written_as_it_was() {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../profiles/h200.json");
    let profile = Profile::read(&shipped).unwrap();
    let mut points = profile.kernels.values().flat_map(|kernel| &kernel.points);
    assert!(points.all(|point| point.configuration.is_none()));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.json");
    profile.write(&path).unwrap();
    assert!(fs::read(&path).unwrap() == fs::read(&shipped).unwrap(), "another text");
}

#[test]
fn writing_leaves_nothing_beside_the_file_and_replaces_it_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.json");
    fs::write(&path, "x".repeat(1 << 20)).unwrap();
    profile().write(&path).unwrap();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    assert_eq!(Profile::read(&path).unwrap(), profile());
}

#[test]
fn what_an_interrupted_writer_left_is_gone_after_the_next_write() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.json");
    // A writer at work, another file's writer, and a file that is none of ours stay.
    let (young, others) = (".p.json.7-1.tmp", [".q.json.7-0.tmp", ".p.json.backup.tmp"]);
    for name in [".p.json.7-0.tmp", young, others[0], others[1]] {
        let file = fs::File::create(folder.path().join(name)).unwrap();
        if name != young {
            file.set_modified(SystemTime::now() - Duration::from_secs(2 * 3600)).unwrap();
        }
    }
    profile().write(&path).unwrap();
    let mut left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    left.sort();
    assert_eq!(left, [young, others[1], others[0], "p.json"]);
}

#[test]
fn a_write_that_fails_names_the_file_and_leaves_what_was_there() {
    let folder = tempfile::tempdir().unwrap();
    let taken = folder.path().join("taken");
    fs::create_dir(&taken).unwrap();
    let error = profile().write(&taken).unwrap_err();
    assert!(matches!(error, ProfileError::NotAFile { is_folder: true, .. }));
    assert!(error.to_string().starts_with(&format!("{}: is a folder", taken.display())), "{error}");
    let file = folder.path().join("file");
    fs::write(&file, "kept").unwrap();
    assert!(matches!(profile().write(&file.join("p.json")), Err(ProfileError::Write { .. })));
    assert_eq!(fs::read_to_string(&file).unwrap(), "kept");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[test]
fn a_profile_that_could_not_be_read_back_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.json");
    let mut flawed = profile();
    flawed.kernels.get_mut(GEMM).unwrap().points[1].median_us = f64::NAN;
    let error = flawed.write(&path).unwrap_err();
    assert!(error.to_string().contains(&format!(r#"kernels["{GEMM}"].points[1].median_us"#)), "{error}");
    assert!(!path.exists());
}

#[test]
fn a_missing_file_names_the_command_that_makes_it() {
    let error = Profile::read(Path::new("/nowhere/p.json")).unwrap_err();
    assert!(matches!(error, ProfileError::Read { .. }));
    assert!(error.to_string().contains("/nowhere/p.json: cannot be read"), "{error}");
    assert!(error.to_string().contains("smidgen profile --model MODEL -o /nowhere/p.json"), "{error}");
}

#[test]
fn malformed_text_is_located_by_line_and_column() {
    let good = serde_json::to_string_pretty(&profile()).unwrap();
    for (text, line) in [
        (good[..good.len() / 2].to_owned(), good[..good.len() / 2].lines().count()),
        (good.replacen("\"tolerance\"", "\"tolerence\"", 1), 1 + good.lines().position(|line| line.contains("tolerance")).unwrap()),
    ] {
        let (path, read) = read_text(&text);
        let Err(ProfileError::Malformed { line: found, column, .. }) = &read else { panic!("{text}: {read:?}") };
        assert_eq!(*found, line.max(1), "{text}");
        let message = read.as_ref().unwrap_err().to_string();
        assert!(message.starts_with(&format!("{}, line {found}, column {column}: ", path.display())), "{message}");
        assert!(message.contains("smidgen profile"), "{message}");
    }
}

#[test]
fn a_file_that_is_something_else_is_said_to_be_and_never_to_be_deleted() {
    for (text, line) in [("", 1), ("{\n  \"schema\": ?", 2), ("[]", 1), ("{\"schema\": 1}", 1), ("{\"model_type\": \"bert\"}", 1)] {
        let (path, read) = read_text(text);
        let Err(ProfileError::NotAProfile { line: found, .. }) = &read else { panic!("{text}: {read:?}") };
        assert_eq!(*found, line, "{text}");
        let message = read.unwrap_err().to_string();
        assert!(message.starts_with(&format!("{}: is no profile", path.display())), "{message}");
        assert!(!message.contains("delete") && !message.contains("move it away"), "{message}");
    }
}

#[test]
fn another_schema_version_is_refused_whatever_its_fields_are() {
    let (path, read) = read_text(r#"{"schema": 7, "anything": []}"#);
    let error = read.unwrap_err();
    assert!(matches!(error, ProfileError::Schema { found: 7, .. }));
    assert!(error.to_string().contains(&path.display().to_string()) && error.to_string().contains("version 7"), "{error}");
}

fn put_configuration(json: &mut serde_json::Value, name: &str, instead_of: &str, gain: f64) {
    json["kernels"][GEMM]["points"][1]["configuration"] = serde_json::json!({ "name": name, "instead_of": instead_of, "gain": gain });
}

#[test]
fn each_impossible_value_is_refused_by_the_name_of_its_field() {
    type Change = fn(&mut serde_json::Value);
    let gemm = format!(r#"kernels["{GEMM}"]"#);
    let cases: [(Change, String); 18] = [
        (|json| json["tolerance"] = 0.0.into(), "tolerance".into()),
        (|json| json["tolerance"] = 1.0.into(), "tolerance".into()),
        (|json| json["provenance"]["sms"] = 0.into(), "provenance.sms".into()),
        (|json| json["peaks"]["bytes_per_s"] = (-1).into(), "peaks.bytes_per_s".into()),
        (|json| json["kernels"][GEMM]["points"][0]["sms"] = 0.into(), format!("{gemm}.points[0].sms")),
        (|json| json["kernels"][GEMM]["points"][2]["sms"] = 133.into(), format!("{gemm}.points[2].sms")),
        (|json| json["kernels"][GEMM]["points"][1]["sms"] = 2.into(), format!("{gemm}.points[1].sms")),
        (|json| json["kernels"][GEMM]["points"][1]["median_us"] = (-3.0).into(), format!("{gemm}.points[1].median_us")),
        (|json| json["kernels"][GEMM]["points"][1]["samples_us"][2] = 0.0.into(), format!("{gemm}.points[1].samples_us[2]")),
        (|json| json["kernels"][GEMM]["points"][1]["rejected"] = 3.into(), format!("{gemm}.points[1].rejected")),
        (|json| put_configuration(json, "", "b", 0.1), format!("{gemm}.points[1].configuration.name")),
        (|json| put_configuration(json, "a", "b c", 0.1), format!("{gemm}.points[1].configuration.instead_of")),
        (|json| put_configuration(json, "a", "a", 0.1), format!("{gemm}.points[1].configuration.instead_of")),
        (|json| put_configuration(json, "a", "b", 0.0), format!("{gemm}.points[1].configuration.gain")),
        (|json| json["kernels"][GEMM]["points"] = serde_json::json!([]), format!("{gemm}.points")),
        (|json| json["kernels"][GEMM]["minimum_sms"] = 64.into(), format!("{gemm}.minimum_sms")),
        (|json| json["kernels"][GEMM]["blocks_per_sm"] = 0.into(), format!("{gemm}.blocks_per_sm")),
        (|json| json["kernels"]["gemm[8x]f16"] = json["kernels"][GEMM].clone(), r#"kernels["gemm[8x]f16"]"#.into()),
    ];
    for (change, expected) in cases {
        let (path, read) = read_changed(change);
        let Err(ProfileError::Field { field, .. }) = &read else { panic!("{expected}: {read:?}") };
        assert_eq!(*field, expected);
        let message = read.as_ref().unwrap_err().to_string();
        assert!(message.starts_with(&format!("{}: {expected}: ", path.display())), "{message}");
        assert!(message.ends_with(&format!("smidgen profile --model bert-base -o {}`", path.display())), "{message}");
    }
}

#[test]
fn each_impossible_power_is_refused_by_the_name_of_its_field() {
    type Change = fn(&mut Profile);
    let point = format!(r#"kernels["{GEMM}"].points[1].power"#);
    fn board(profile: &mut Profile) -> &mut BoardPower {
        profile.power.as_mut().unwrap()
    }
    fn sample(profile: &mut Profile) -> &mut PowerSample {
        profile.kernels.get_mut(GEMM).unwrap().points[1].power.as_mut().unwrap()
    }
    let cases: [(Change, String); 13] = [
        (|profile| board(profile).idle_w = -1.0, "power.idle_w".into()),
        (|profile| board(profile).idle_w = f64::NAN, "power.idle_w".into()),
        (|profile| board(profile).limit_w = f64::INFINITY, "power.limit_w".into()),
        (|profile| board(profile).limit_w = f64::NAN, "power.limit_w".into()),
        (|profile| board(profile).limit_w = 118.25, "power.limit_w".into()),
        (|profile| board(profile).clock_mhz = 0, "power.clock_mhz".into()),
        (|profile| sample(profile).board_w = -0.5, format!("{point}.board_w")),
        (|profile| sample(profile).board_w = f64::NAN, format!("{point}.board_w")),
        (|profile| sample(profile).launch_us = 0.0, format!("{point}.launch_us")),
        (|profile| sample(profile).launch_us = -16.0, format!("{point}.launch_us")),
        (|profile| sample(profile).launch_us = f64::NAN, format!("{point}.launch_us")),
        (|profile| sample(profile).clock_mhz = 0, format!("{point}.clock_mhz")),
        (|profile| profile.power = None, point.clone()),
    ];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.json");
    for (change, expected) in cases {
        let mut flawed = powered();
        change(&mut flawed);
        let Err(ProfileError::Field { field, .. }) = flawed.write(&path) else { panic!("{expected}: written") };
        assert_eq!(field, expected);
        let Err(ProfileError::Field { field, .. }) = ProfileStore::default().add(&path, flawed, &machine(&h200())) else {
            panic!("{expected}: added")
        };
        assert_eq!(field, expected);
    }
    assert!(!path.exists());
    powered().write(&path).unwrap();
}

#[test]
fn a_profile_of_no_model_is_refused() {
    let (_, read) = read_changed(|json| json["provenance"]["models"] = serde_json::json!([]));
    assert!(matches!(read, Err(ProfileError::Field { field, .. }) if field == "provenance.models"));
}

#[test]
fn two_texts_of_one_kernel_key_are_refused() {
    let (_, read) = read_changed(|json| json["kernels"]["gemm_bias[01024x768x3072]f16"] = json["kernels"][GEMM].clone());
    assert!(read.unwrap_err().to_string().contains("means the same kernel as"));
}

#[test]
fn an_added_kernel_is_found_by_its_fingerprint_and_no_other_is() {
    let mut store = ProfileStore::default();
    let topology = h200();
    assert_eq!(store.add(Path::new("p.json"), profile(), &machine(&topology)).unwrap(), []);
    assert_eq!(store.curve(fingerprint(GEMM)).unwrap().points(), [(Sms(2), 460.0), (Sms(66), 16.1), (Sms(132), 16.0)]);
    assert_eq!(store.kernel(fingerprint(GEMM)).unwrap().minimum_sms, Sms(66));
    assert!(store.curve(fingerprint("gemm_bias[1024x768x3073]f16")).is_none());
    assert_eq!(store.len(), 2);
}

#[test]
fn a_profile_of_another_machine_is_refused_with_the_command_that_measures_here() {
    let here = h200();
    let mut other_gpu = profile();
    other_gpu.provenance.gpu = "NVIDIA A100-SXM4-80GB".into();
    let mut other_sms = profile();
    other_sms.provenance.sms = Sms(134);
    let mut simulated = profile();
    simulated.provenance.simulated = true;
    simulated.provenance.models.push("mistral-7b".into());
    for (other, message) in [
        (
            other_gpu,
            "a/p.json: profiled on NVIDIA A100-SXM4-80GB but this GPU is NVIDIA H200; move it away and run `smidgen profile --model bert-base -o a/p.json` here",
        ),
        (
            other_sms,
            "a/p.json: profiled on 134 SMs but this GPU has 132; move it away and run `smidgen profile --model bert-base -o a/p.json` here",
        ),
        (
            simulated,
            "a/p.json: SIMULATED, so it says nothing about a real GPU; move it away and run `smidgen profile --model bert-base -o a/p.json && smidgen profile --model mistral-7b -o a/p.json` here",
        ),
    ] {
        let mut store = ProfileStore::default();
        let error = store.add(Path::new("a/p.json"), other, &machine(&here)).unwrap_err();
        assert_eq!(error.to_string(), message);
        assert!(store.is_empty());
    }
}

#[test]
fn the_command_that_measures_again_measures_every_model_at_its_own_shapes() {
    let mut measured = profile().provenance;
    measured.command = "smidgen profile --model bert-base --batch 64 --seq 384 -o p.json".into();
    measured.include(&Provenance {
        models: vec!["llama-3.2-1b".into()],
        command: "smidgen profile --model llama-3.2-1b --batch 1 --seq 2048 --phase prefill -o p.json".into(),
        ..measured.clone()
    });
    assert_eq!(measured.models, ["bert-base", "llama-3.2-1b"]);
    assert_eq!(
        measured.command_again(Path::new("a/p.json")),
        "smidgen profile --model bert-base --batch 64 --seq 384 -o a/p.json && smidgen profile --model llama-3.2-1b --batch 1 --seq 2048 --phase prefill -o a/p.json"
    );
}

#[test]
fn a_simulated_profile_is_measured_again_where_it_is_wanted() {
    let mut simulated = profile();
    simulated.provenance.simulated = true;
    simulated.provenance.command = "smidgen profile --device sim --model bert-base --batch 4 -o p.json".into();
    let path = Path::new("a/p.json");
    let refused = ProfileStore::default().add(path, simulated.clone(), &machine(&h200())).unwrap_err().to_string();
    assert!(refused.contains("run `smidgen profile --model bert-base --batch 4 -o a/p.json` here"), "{refused}");
    let other = Topology { name: "NVIDIA A100".into(), ..h200() };
    let simulator = Machine { simulated: true, ..machine(&other) };
    // Also one that was measured, where there is no GPU to measure again on.
    let measured = profile();
    for (other, options) in [(simulated, "--device sim --model bert-base --batch 4"), (measured, "--device sim --model bert-base")] {
        let refused = ProfileStore::default().add(path, other, &simulator).unwrap_err().to_string();
        assert!(refused.contains(&format!("run `smidgen profile {options} -o a/p.json` here")), "{refused}");
    }
}

#[test]
fn soft_differences_are_warned_about_and_the_profile_is_used() {
    let topology = Topology { driver: "600.1".into(), ..h200() };
    let path = PathBuf::from("p.json");
    let mut store = ProfileStore::default();
    let warnings = store.add(&path, profile(), &Machine { kernel_build: "beef", ..machine(&topology) }).unwrap();
    assert_eq!(
        warnings,
        [
            ProfileWarning::Driver { path: path.clone(), found: "580.159.04".into(), here: "600.1".into() },
            ProfileWarning::KernelBuild {
                path: path.clone(),
                found: BUILD.into(),
                here: "beef".into(),
                command: "smidgen profile --model bert-base -o p.json".into()
            },
        ]
    );
    assert_eq!(store.len(), 2);
}

#[test]
fn what_this_machine_cannot_tell_is_not_warned_about() {
    let topology = Topology { driver: String::new(), ..h200() };
    let mut store = ProfileStore::default();
    let warnings = store.add(Path::new("p.json"), profile(), &Machine { topology: &topology, simulated: false, kernel_build: "" });
    assert_eq!(warnings.unwrap(), []);
}

#[test]
fn the_figures_added_last_count_but_simulated_ones_never_replace_measured_ones() {
    let topology = h200();
    let simulator = Machine { topology: &topology, simulated: true, kernel_build: BUILD };
    let path = PathBuf::from("p.json");
    let mut faster = profile();
    faster.kernels.get_mut(GEMM).unwrap().points[2].median_us = 15.0;
    let mut simulated = faster.clone();
    simulated.provenance.simulated = true;

    let mut store = ProfileStore::default();
    store.add(&path, profile(), &simulator).unwrap();
    assert_eq!(store.add(&path, profile(), &simulator).unwrap(), [], "the same figures again are no news");
    let warnings = store.add(&path, simulated.clone(), &simulator).unwrap();
    assert_eq!(warnings, [ProfileWarning::Again { path: path.clone(), kernels: 2, replaced: false }]);
    assert_eq!(store.curve(fingerprint(GEMM)).unwrap().at(Sms(132)), 16.0);
    let warnings = store.add(&path, faster, &simulator).unwrap();
    assert_eq!(warnings, [ProfileWarning::Again { path: path.clone(), kernels: 1, replaced: true }]);
    assert_eq!(store.curve(fingerprint(GEMM)).unwrap().at(Sms(132)), 15.0);
}

#[test]
fn remedies_quote_a_path_that_a_shell_would_take_apart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("my profile.json");
    let remedy = format!("`smidgen profile --model MODEL -o '{}'`", path.display());
    let missing = Profile::read(&path).unwrap_err().to_string();
    assert!(missing.ends_with(&remedy), "{missing}");
    std::fs::write(&path, "{\"schema\": 1, \"kernel_build\"").unwrap();
    let malformed = Profile::read(&path).unwrap_err().to_string();
    assert!(malformed.ends_with(&remedy), "{malformed}");
}
