//! Compiles `kernels/**/*.cu` into one fatbin for `src/fatbin.rs` to embed.
//!
//! Every source is compiled by itself, for every architecture, and only when it, a header it includes, or the compiler changed; then all are
//! linked. Objects are kept for all profiles together. Without a CUDA compiler the crate builds without kernels, and says so once; on a build server (`CI=true`) that is an error.
//!
//! Two choices need their reasons beside them:
//! - `-ewp` (extensible whole program) and not `-rdc=true`. Both yield objects that can be linked into one image, but under `-rdc=true`
//!   ptxas ignores `setmaxnreg` "to maintain compatibility across compilation units", and the register budget of warp-specialised sm_90a
//!   kernels is lost. The machine code of `-ewp` is that of a whole program.
//! - ptxas' "Potential Performance Loss" is an error here although ptxas calls it information: it means serialised `wgmma` or an ignored
//!   `setmaxnreg`.

use std::collections::BTreeSet;
use std::env;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::thread;

#[path = "xtask/src/nvcc.rs"]
mod nvcc;

use nvcc::Nvcc;

/// sm_80 machine code runs on every GPU of compute capability 8.x; `sm_90a` is sm_90 with the instructions that only Hopper has.
const ARCHITECTURES: [&str; 2] = ["-gencode=arch=compute_80,code=sm_80", "-gencode=arch=compute_90a,code=sm_90a"];

/// Exact arithmetic (no `--use_fast_math`), and ptxas' resource report.
const COMPILE: [&str; 6] = ["-O3", "--std=c++17", "-Ikernels", "-Werror=all-warnings", "-Xptxas=-v,-Werror", "-ewp"];

/// Set to 1, it keeps line numbers, by which Nsight Compute shows source beside machine code. They triple the size of every binary's kernels.
const LINE_NUMBERS: &str = "SMIDGEN_LINEINFO";

fn main() {
    println!("cargo::rustc-check-cfg=cfg(kernels_built)");
    for file in ["build.rs", "xtask/src/nvcc.rs", "kernels"] {
        if Path::new(file).exists() {
            println!("cargo::rerun-if-changed={file}");
        }
    }
    println!("cargo::rustc-env=SMIDGEN_COMMIT={}", commit().unwrap_or_default());
    for variable in ["NVCC", "CUDA_HOME", "CXX", "CI", LINE_NUMBERS] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    if let Err(message) = build_kernels() {
        for line in message.lines().filter(|line| !line.trim().is_empty()) {
            println!("cargo::error={line}");
        }
    }
}

/// The checked-out commit, for the provenance of results; a tree with changes says so. None outside a checkout.
fn commit() -> Option<String> {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
        String::from_utf8(output.stdout).ok().map(|text| text.trim().to_owned())
    };
    for file in [".git/HEAD", ".git/logs/HEAD"] {
        if Path::new(file).exists() {
            println!("cargo::rerun-if-changed={file}");
        }
    }
    let changed = git(&["status", "--porcelain", "--untracked-files=no"])?;
    Some(git(&["rev-parse", "--short=12", "HEAD"])? + if changed.is_empty() { "" } else { "-changed" })
}

fn build_kernels() -> Result<(), String> {
    let kernels = Path::new("kernels");
    let device_code = files_under(kernels, &["cu", "cuh", "h"]).map_err(|error| format!("cannot read {}: {error}", kernels.display()))?;
    let sources: Vec<&PathBuf> = device_code.iter().filter(|path| has_extension(path, &["cu"])).collect();

    let toolchain = Toolchain::find();
    let version = toolchain.as_ref().map_or("none", |found| &found.nvcc.version);
    println!("cargo::rustc-env=SMIDGEN_KERNELS_HASH={:016x}", build_hash(version, &device_code)?);
    if sources.is_empty() {
        return Ok(());
    }
    match toolchain {
        Ok(toolchain) => {
            println!("cargo::rerun-if-changed={}", toolchain.nvcc.path.display());
            toolchain.compile_all(&sources)?;
            println!("cargo::rustc-cfg=kernels_built");
            Ok(())
        }
        Err(reason) if env::var("CI").is_ok_and(|value| value == "true") => Err(reason),
        Err(reason) => {
            println!("cargo::rerun-if-env-changed=PATH");
            println!("cargo::warning=built without kernels, so no GPU can be used: {reason}; run `cargo xtask toolchain`");
            Ok(())
        }
    }
}

/// The compiler, the host compiler that it preprocesses with, and where objects are kept.
struct Toolchain {
    nvcc: Nvcc,
    host_compiler: PathBuf,
    objects: PathBuf,
    extra_options: &'static [&'static str],
}

impl Toolchain {
    fn find() -> Result<Self, String> {
        let nvcc = nvcc::find(Path::new(".")).map_err(|error| error.to_string())?;
        let host = cc::Build::new().cpp(true).cargo_metadata(false).try_get_compiler().map_err(|error| error.to_string())?;
        let host_compiler = host.path().to_owned();
        if !Command::new(&host_compiler).arg("--version").output().is_ok_and(|answer| answer.status.success()) {
            return Err(format!("nvcc needs a C++ compiler and {} does not run: install g++ or set CXX", host_compiler.display()));
        }
        let extra_options: &[&str] = if env::var(LINE_NUMBERS).is_ok_and(|value| value == "1") { &["-lineinfo"] } else { &[] };
        Ok(Self { nvcc, host_compiler, objects: nvcc::objects_folder(&out_dir()), extra_options })
    }

    fn compile_all(&self, sources: &[&PathBuf]) -> Result<(), String> {
        // Builds of two profiles may run at once, and share the folder.
        let lock = fs::create_dir_all(&self.objects).and_then(|()| File::create(self.objects.join("lock")));
        let lock = lock.and_then(|file| file.lock().map(|()| file));
        let _held_until_return = lock.map_err(|error| format!("cannot lock {}: {error}", self.objects.display()))?;

        let objects: Vec<Object> = sources.iter().map(|source| Object::of(source, &self.objects)).collect();
        remove_leftovers(&self.objects, &objects).map_err(|error| format!("cannot tidy {}: {error}", self.objects.display()))?;

        let queue = Mutex::new(objects.iter());
        let failures = Mutex::new(Vec::new());
        let workers = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1);
        thread::scope(|scope| {
            for _ in 0..objects.len().min(workers) {
                scope.spawn(|| {
                    while let Some(object) = next(&queue) {
                        if let Err(message) = self.compile(object) {
                            failures.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(message);
                        }
                    }
                });
            }
        });
        let failures = failures.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        if !failures.is_empty() {
            return Err(failures.join("\n"));
        }
        self.link(&objects)
    }

    fn compile(&self, object: &Object) -> Result<(), String> {
        if object.is_fresh(&self.settings()) {
            return Ok(());
        }
        // Removed first, so that a build cut short leaves no key beside an object that it does not describe.
        let _ = fs::remove_file(&object.key);
        if let Some(folder) = object.image.parent() {
            fs::create_dir_all(folder).map_err(|error| format!("cannot create {}: {error}", folder.display()))?;
        }
        let said = self.run(
            Command::new(&self.nvcc.path)
                .args(COMPILE)
                .args(self.extra_options)
                .args(["-fatbin", "-MD", "-MF"])
                .args([&object.dependencies, &object.source]),
            &object.image,
        )?;
        if let Some(advice) = said.lines().find(|line| line.contains("Potential Performance Loss")) {
            return Err(format!("{}: {advice}", object.source.display()));
        }
        let write = |path: &Path, text: String| fs::write(path, text).map_err(|error| format!("cannot write {}: {error}", path.display()));
        write(&object.resources, said)?;
        write(&object.key, object.current_key(&self.settings()).unwrap_or_default())
    }

    fn link(&self, objects: &[Object]) -> Result<(), String> {
        let images = objects.iter().map(|object| &object.image);
        self.run(
            Command::new(&self.nvcc.path).args(["-dlink", "-fatbin", "-compress-mode=size"]).args(images),
            &out_dir().join("kernels.fatbin"),
        )?;
        Ok(())
    }

    /// Runs nvcc and hands back all that it said.
    fn run(&self, command: &mut Command, output: &Path) -> Result<String, String> {
        command.args(ARCHITECTURES).arg("-ccbin").arg(&self.host_compiler).arg("-o").arg(output);
        let answer = command.output().map_err(|error| format!("cannot run {}: {error}", self.nvcc.path.display()))?;
        let said = String::from_utf8_lossy(&answer.stdout).into_owned() + &String::from_utf8_lossy(&answer.stderr);
        if answer.status.success() { Ok(said) } else { Err(without_resource_report(&said)) }
    }

    /// All but the sources that decides what comes out of a compilation.
    fn settings(&self) -> String {
        format!("{} {} {COMPILE:?} {:?} {ARCHITECTURES:?}", self.nvcc.version, self.host_compiler.display(), self.extra_options)
    }
}

fn next<'a>(queue: &Mutex<impl Iterator<Item = &'a Object>>) -> Option<&'a Object> {
    queue.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).next()
}

/// What is kept of one compiled source.
struct Object {
    source: PathBuf,
    image: PathBuf,
    /// The compiler's list of files that it read, in make's syntax.
    dependencies: PathBuf,
    /// The hash of all that went into `image`.
    key: PathBuf,
    /// ptxas' report of registers, shared memory and spills; `cargo xtask kernels --report` reads it.
    resources: PathBuf,
}

impl Object {
    fn of(source: &Path, objects: &Path) -> Self {
        let stem = objects.join(source.strip_prefix("kernels").unwrap_or(source));
        Self {
            source: source.to_owned(),
            image: stem.with_extension("fatbin"),
            dependencies: stem.with_extension("d"),
            key: stem.with_extension("key"),
            resources: stem.with_extension("ptxas.txt"),
        }
    }

    fn files(&self) -> [&Path; 4] {
        [&self.image, &self.dependencies, &self.key, &self.resources]
    }

    fn is_fresh(&self, settings: &str) -> bool {
        self.image.exists()
            && self.resources.exists()
            && fs::read_to_string(&self.key).is_ok_and(|key| Some(key) == self.current_key(settings))
    }

    /// `None` if the source was never compiled, or a header that it included is gone.
    fn current_key(&self, settings: &str) -> Option<String> {
        let rule = fs::read_to_string(&self.dependencies).ok()?;
        let (_, prerequisites) = rule.split_once(" : ").or_else(|| rule.split_once(": "))?;
        let mut hash = Fnv::new();
        hash.write(settings.as_bytes());
        // Files outside `kernels` are the compiler's and the system's own: the compiler's version stands for them.
        for file in prerequisites.split_whitespace().filter(|file| file.starts_with("kernels/")) {
            hash.write(file.as_bytes());
            hash.write(&fs::read(file).ok()?);
        }
        Some(format!("{:016x}", hash.0))
    }
}

/// Removes what earlier builds left of sources that are no more, so that reports name only kernels that exist.
fn remove_leftovers(folder: &Path, objects: &[Object]) -> io::Result<()> {
    let wanted: BTreeSet<&Path> = objects.iter().flat_map(Object::files).collect();
    for file in files_under(folder, &["fatbin", "d", "key", "txt"])? {
        if !wanted.contains(file.as_path()) {
            fs::remove_file(file)?;
        }
    }
    Ok(())
}

/// ptxas reports resources for each kernel even when another fails: none of it helps who reads the failure.
fn without_resource_report(said: &str) -> String {
    let is_report = |line: &&str| line.starts_with("ptxas info") || line.contains("bytes stack frame");
    said.lines().filter(|line| !is_report(line)).collect::<Vec<_>>().join("\n")
}

/// Names one state of all device code and its compiler, for the provenance of profiles: paths and contents, in the order of paths.
fn build_hash(version: &str, device_code: &[PathBuf]) -> Result<u64, String> {
    let mut hash = Fnv::new();
    hash.write(format!("{version} {COMPILE:?} {ARCHITECTURES:?}").as_bytes());
    for path in device_code {
        hash.write(path.as_os_str().as_encoded_bytes());
        hash.write(&fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?);
    }
    Ok(hash.0)
}

/// FNV-1a, 64 bits (Fowler, Noll and Vo): the standard library's hashes may change between Rust releases, and a profile outlives those.
struct Fnv(u64);

impl Fnv {
    const fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    /// Adds a field: its bytes and its length, so that no two sequences of fields run together.
    fn write(&mut self, field: &[u8]) {
        for &byte in field.iter().chain(&field.len().to_le_bytes()) {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

/// The files below `folder` with one of `extensions`, sorted; none if there is no such folder.
fn files_under(folder: &Path, extensions: &[&str]) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if has_extension(&path, extensions) {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

fn has_extension(path: &Path, extensions: &[&str]) -> bool {
    path.extension().is_some_and(|extension| extensions.iter().any(|wanted| extension == *wanted))
}

fn out_dir() -> PathBuf {
    PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default())
}
