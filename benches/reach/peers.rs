//! PyTorch's side of a comparison: `benches/peers/serve.py` as a child process that takes one sample at a time when asked.

use std::env;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// The folder of `serve.py`, where it is not the repository's.
const FOLDER: &str = "SMIDGEN_PEERS";

/// The child. It ends when its input does.
pub struct Peers {
    child: Child,
    /// None once it is told to end.
    questions: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Peers {
    /// Starts Python.
    pub fn start() -> Result<Self> {
        let folder =
            env::var_os(FOLDER).map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers")), PathBuf::from);
        let program = folder.join("serve.py");
        let mut command = Command::new("python3");
        command.arg(&program).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot run python3 {}", program.display()))?;
        let questions = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().context("the peer has no output")?);
        Ok(Self { child, questions, answers })
    }

    /// Builds `work` and says what it is.
    pub fn prepare(&mut self, work: &str) -> Result<String> {
        let answer = self.ask("prepare", work)?;
        Ok(answer["what"].as_str().unwrap_or(work).to_owned())
    }

    /// Device time of one execution.
    pub fn sample(&mut self, work: &str) -> Result<Duration> {
        let us = self.ask("sample", work)?["us"].as_f64().filter(|us| us.is_finite() && *us > 0.0);
        Ok(Duration::from_secs_f64(us.context("the peer gave no time")? / 1e6))
    }

    /// Gives the memory of `work` back.
    pub fn drop_work(&mut self, work: &str) -> Result<()> {
        self.ask("drop", work).map(drop)
    }

    fn ask(&mut self, verb: &str, work: &str) -> Result<Value> {
        let questions = self.questions.as_mut().context("the peer has no input")?;
        writeln!(questions, "{verb} {work}").context("the peer has ended")?;
        questions.flush()?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        let answer: Value = serde_json::from_str(&line).with_context(|| format!("the peer answered `{}`", line.trim()))?;
        match answer["error"].as_str() {
            Some(error) => bail!("{work}: {error}"),
            None => Ok(answer),
        }
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        drop(self.questions.take());
        let _ = self.child.wait();
    }
}
