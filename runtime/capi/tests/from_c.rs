//! The header and the libraries as a C program meets them: compiled by gcc without a warning, linked, run on the simulator.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// What a C program must name beside the static library, as `rustc --print native-static-libs` lists it on Linux.
const SYSTEM_LIBRARIES: [&str; 6] = ["-lgcc_s", "-lutil", "-lrt", "-lpthread", "-lm", "-ldl"];

#[derive(Clone, Copy, Debug)]
enum Linking {
    Static,
    Shared,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The folder into which cargo put the libraries of this package: that of this test.
fn libraries() -> PathBuf {
    let test = std::env::current_exe().expect("a running test has a path");
    test.parent().expect("it lies in a folder").to_owned()
}

fn gcc(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) {
    let mut command = Command::new("gcc");
    command.args(["-Wall", "-Wextra", "-Werror", "-pedantic", "-std=c11", "-O1", "-I"]).arg(root().join("include")).args(arguments);
    let output = command.output().expect("gcc is there");
    assert!(output.status.success(), "{}", said(&output));
}

fn said(output: &Output) -> String {
    format!("{}\n{}{}", output.status, String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Compiles `source`, links it and runs it in the repository's root, with no GPU to be seen.
fn run(source: &str, linking: Linking) -> Output {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let program = folder.path().join("program");
    let mut arguments = vec![root().join(source).into_os_string(), "-o".into(), program.clone().into()];
    let libraries = libraries();
    match linking {
        Linking::Static => {
            arguments.push(libraries.join("libsmidgen_capi.a").into());
            arguments.extend(SYSTEM_LIBRARIES.map(Into::into));
        }
        Linking::Shared => {
            let folder = libraries.to_str().expect("UTF-8");
            arguments.extend([format!("-L{folder}"), "-lsmidgen_capi".into(), format!("-Wl,-rpath,{folder}")].map(Into::into));
        }
    }
    gcc(arguments);
    Command::new(program).current_dir(root()).env("CUDA_VISIBLE_DEVICES", "").output().expect("the program runs")
}

#[test]
fn a_c_engine_launches_captures_and_makes_room_for_a_neighbour() {
    for linking in [Linking::Static, Linking::Shared] {
        let output = run("examples/c/saxpy.c", linking);
        assert!(output.status.success(), "{linking:?}: {}", said(&output));
        let lines = String::from_utf8(output.stdout).expect("UTF-8");
        let ms: Vec<f64> = lines.lines().map(|line| line.split_whitespace().rev().nth(2).unwrap().parse().unwrap()).collect();
        assert!(lines.contains("on 132 SMs") && lines.contains("on  66 SMs"), "{lines}");
        assert!(lines.lines().all(|line| line.ends_with("(SIMULATED)")), "{lines}");
        // 12 bytes for each of 2^27 elements, 10 times, at no more than the simulated H200's 4640 GB/s.
        assert!(ms.len() == 2 && ms.iter().all(|&ms| ms > 3.4) && ms[1] >= ms[0], "{lines}");
    }
}

#[test]
fn every_mistake_that_can_be_seen_gives_a_status_and_a_message() {
    let output = run("runtime/capi/tests/misuse.c", Linking::Shared);
    assert!(output.status.success(), "{}", said(&output));
}

#[test]
fn a_tenant_is_admitted_beside_what_others_were_promised_or_have_allocated_each_byte_counted_once() {
    let output = run("runtime/capi/tests/memory.c", Linking::Shared);
    assert!(output.status.success(), "{}", said(&output));
}

#[test]
fn the_header_compiles_alone_and_as_cpp() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let source = folder.path().join("alone.cpp");
    std::fs::write(&source, "#include \"smidgen.h\"\nint main() { return smidgen_require_abi(SMIDGEN_ABI_VERSION); }\n").expect("writable");
    let mut command = Command::new("g++");
    command.args(["-Wall", "-Wextra", "-Werror", "-pedantic", "-std=c++17", "-fsyntax-only", "-I"]).arg(root().join("include"));
    let output = command.arg(&source).output().expect("g++ is there");
    assert!(output.status.success(), "{}", said(&output));
}
