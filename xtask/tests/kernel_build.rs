//! What the root package's build script makes of kernels, on a small package that has the same build script and kernels of its own.
//!
//! Tests that compile kernels need a CUDA compiler; `cargo xtask test` puts one there first. The others hide it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// `NAME` is each package's own: cargo tells packages in one target folder apart by name.
const MANIFEST: &str = r#"
[package]
name = "NAME"
version = "0.0.0"
edition = "2024"
[workspace]
[build-dependencies]
cc = "1"
[profile.dev]
debug = false
"#;

/// Says what was embedded.
const MAIN: &str = r#"
mod fatbin;
fn main() { println!("{} {}", fatbin::FATBIN.map_or(0, <[u8]>::len), fatbin::BUILD_HASH) }
"#;

struct Package {
    folder: PathBuf,
}

impl Package {
    fn with_kernels(name: &str, kernels: &[(&str, &str)]) -> Self {
        let folder = scratch().join(name);
        if folder.exists() {
            fs::remove_dir_all(&folder).expect("an earlier run's package goes");
        }
        let package = Self { folder };
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for file in ["build.rs", "xtask/src/nvcc.rs", "src/fatbin.rs", "Cargo.lock"] {
            package.write(file, &fs::read_to_string(repository.join(file)).expect("the repository has it"));
        }
        package.write("Cargo.toml", &MANIFEST.replace("NAME", name));
        package.write("src/main.rs", MAIN);
        for (path, text) in kernels {
            package.write(path, text);
        }
        package
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.folder.join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, text).expect("writable");
    }

    fn cargo(&self) -> Command {
        let mut cargo = Command::new(env!("CARGO"));
        // One folder for all these packages: what they depend on is built once.
        cargo.args(["run", "--offline"]).current_dir(&self.folder).env("CARGO_TARGET_DIR", scratch().join("target"));
        cargo.env_remove("CI").env_remove("CUDA_HOME");
        cargo
    }

    /// Builds and runs with the compiler at hand.
    fn run(&self, nvcc: &Path) -> Output {
        self.cargo().env("NVCC", nvcc).output().expect("cargo runs")
    }

    /// Builds and runs as on a machine without a compiler.
    fn run_without_compiler(&self) -> Output {
        self.cargo().env("NVCC", "/nonexistent/nvcc").output().expect("cargo runs")
    }
}

fn scratch() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernel_build")
}

/// The compiler that the chores use, or `None` where the machine has none.
fn nvcc() -> Option<PathBuf> {
    #[allow(dead_code)] // The chores use all of it.
    #[path = "../src/nvcc.rs"]
    mod nvcc;
    match nvcc::find(&Path::new(env!("CARGO_MANIFEST_DIR")).join("..")) {
        Ok(found) => Some(found.path),
        Err(missing) => {
            eprintln!("not checked: {missing} (`cargo xtask test` brings one)");
            None
        }
    }
}

/// The size of the embedded image and the hash, if the build succeeded.
fn embedded(output: &Output) -> (usize, String) {
    let stdout = String::from_utf8_lossy(&output.stdout);
    let (size, hash) = stdout.trim().split_once(' ').unwrap_or_else(|| panic!("no result: {}", errors(output)));
    (size.parse().expect("a size"), hash.to_owned())
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

const KERNEL: &str = "#include \"room/factor.cuh\"\nextern \"C\" __global__ void scale(float *x) { x[threadIdx.x] *= factor(); }\n";
const HEADER: &str = "__device__ inline float factor() { return 2.0f; }\n";

#[test]
fn without_a_compiler_the_build_succeeds_without_kernels_and_names_the_command_to_run() {
    let package = Package::with_kernels("no-compiler", &[("kernels/room/scale.cu", KERNEL), ("kernels/room/factor.cuh", HEADER)]);
    let output = package.run_without_compiler();
    assert_eq!(embedded(&output).0, 0);
    assert!(errors(&output).contains("cargo xtask toolchain"), "{}", errors(&output));
}

#[test]
fn without_a_compiler_a_build_server_fails() {
    let package = Package::with_kernels("no-compiler-on-server", &[("kernels/room/scale.cu", KERNEL), ("kernels/room/factor.cuh", HEADER)]);
    let output = package.cargo().env("NVCC", "/nonexistent/nvcc").env("CI", "true").output().expect("cargo runs");
    assert!(!output.status.success());
    assert!(errors(&output).contains("no CUDA compiler"), "{}", errors(&output));
}

#[test]
fn a_package_without_kernels_builds_and_asks_for_no_compiler() {
    let output = Package::with_kernels("no-kernels", &[]).run_without_compiler();
    assert_eq!(embedded(&output).0, 0);
    assert!(!errors(&output).contains("warning"), "{}", errors(&output));
}

#[test]
fn kernels_of_several_files_and_folders_are_embedded_as_one_image() {
    let Some(nvcc) = nvcc() else { return };
    let other = "extern \"C\" __global__ void clear(float *x) { x[threadIdx.x] = 0; }\n";
    let package = Package::with_kernels(
        "several-files",
        &[("kernels/room/scale.cu", KERNEL), ("kernels/room/factor.cuh", HEADER), ("kernels/other/clear.cu", other)],
    );
    let output = package.run(&nvcc);
    assert!(embedded(&output).0 > 0);
}

#[test]
fn a_changed_header_changes_the_hash_and_recompiles_what_includes_it() {
    let Some(nvcc) = nvcc() else { return };
    let package = Package::with_kernels("changed-header", &[("kernels/room/scale.cu", KERNEL), ("kernels/room/factor.cuh", HEADER)]);
    let (_, before) = embedded(&package.run(&nvcc));

    package.write("kernels/room/factor.cuh", "__device__ inline float factor() { return oops; }\n");
    let broken = package.run(&nvcc);
    assert!(!broken.status.success(), "the old object was used");

    package.write("kernels/room/factor.cuh", "__device__ inline float factor() { return 3.0f; }\n");
    let (_, after) = embedded(&package.run(&nvcc));
    assert_ne!(before, after);
}

#[test]
fn a_kernel_that_does_not_compile_fails_the_build_with_the_compilers_message() {
    let Some(nvcc) = nvcc() else { return };
    let package =
        Package::with_kernels("broken", &[("kernels/room/broken.cu", "extern \"C\" __global__ void broken(float *x) { x[0] = y; }\n")]);
    let output = package.run(&nvcc);
    assert!(!output.status.success());
    assert!(errors(&output).contains("kernels/room/broken.cu(1): error: identifier \"y\" is undefined"), "{}", errors(&output));
}

#[test]
fn a_warning_in_a_kernel_fails_the_build() {
    let Some(nvcc) = nvcc() else { return };
    let package = Package::with_kernels("sloppy", &[("kernels/room/sloppy.cu", "extern \"C\" __global__ void sloppy() { int unused; }\n")]);
    let output = package.run(&nvcc);
    assert!(!output.status.success());
    assert!(errors(&output).contains("never referenced"), "{}", errors(&output));
}

/// Warp-specialised code for Hopper; `BOUNDS` stands for what tells ptxas the registers at entry.
const SETMAXNREG: &str = r#"
extern "C" __global__ void BOUNDS reallocate(float *x) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    if (threadIdx.x < 128) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    }
#endif
    x[threadIdx.x] = 1;
}
"#;

#[test]
fn register_reallocation_on_hopper_survives_separate_compilation() {
    let Some(nvcc) = nvcc() else { return };
    // ptxas gives up on `setmaxnreg` under relocatable device code, and says so; the build takes that for an error.
    let package =
        Package::with_kernels("reallocate", &[("kernels/room/reallocate.cu", &SETMAXNREG.replace("BOUNDS", "__launch_bounds__(384, 1)"))]);
    assert!(embedded(&package.run(&nvcc)).0 > 0);
}

#[test]
fn an_instruction_that_ptxas_ignores_at_the_cost_of_speed_fails_the_build() {
    let Some(nvcc) = nvcc() else { return };
    let package = Package::with_kernels("ignored", &[("kernels/room/reallocate.cu", &SETMAXNREG.replace("BOUNDS", ""))]);
    let output = package.run(&nvcc);
    assert!(!output.status.success());
    assert!(errors(&output).contains("'setmaxnreg' ignored"), "{}", errors(&output));
}
