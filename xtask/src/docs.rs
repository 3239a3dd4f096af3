//! `cargo xtask docs`: the measured parts of docs/kernels.md and the plots beside it, drawn from the results that are checked in.
//!
//! The page holds pairs of markers, `<!-- begin NAME: cargo xtask docs -->` and `<!-- end NAME -->`; what stands between them is replaced. So a figure on the page is
//! one that a run wrote, and a test fails when the page and the results part.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::de::DeserializeOwned;

use crate::files;

mod plots;
#[allow(missing_docs)]
mod results;
mod tables;

use results::{Errors, Results};

const PAGE: &str = "docs/kernels.md";
const PLOTS: &str = "docs/plots";
const RESULTS: &str = "results/h200/kernels.json";
const ERRORS: &str = "results/h200/errors.json";

/// A file and what should be in it.
struct Drawn {
    path: PathBuf,
    contents: String,
}

/// Draws everything, or, with `check`, changes nothing and fails where something is not as it would be drawn.
pub fn run(root: &Path, check: bool) -> Result<()> {
    let drawn = draw(root)?;
    let stale = leftovers(root, &drawn)?;
    if check {
        for Drawn { path, contents } in &drawn {
            let found = fs::read_to_string(path).unwrap_or_default();
            ensure!(found == *contents, "{} does not follow from {RESULTS} and {ERRORS}: run `cargo xtask docs`", path.display());
        }
        ensure!(stale.is_empty(), "{} is drawn from no result: run `cargo xtask docs`", stale[0].display());
        return Ok(());
    }
    for path in stale {
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    for Drawn { path, contents } in drawn {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        }
        fs::write(&path, contents).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn draw(root: &Path) -> Result<Vec<Drawn>> {
    let results: Option<Results> = read(&root.join(RESULTS))?;
    let errors: Option<Errors> = read(&root.join(ERRORS))?;
    let mut drawn = Vec::new();
    let mut reach = "No run is published yet.\n".to_owned();
    if let Some(results) = &results {
        results.check().map_err(anyhow::Error::msg).with_context(|| format!("{RESULTS} contradicts itself"))?;
        reach = tables::reach(results);
        for curve in &results.curves {
            let name = plots::file_name(curve);
            reach += &format!("\n![{}]({}/{name})\n", plots::title(curve), PLOTS.trim_start_matches("docs/"));
            drawn.push(Drawn { path: root.join(PLOTS).join(name), contents: plots::draw(curve) });
        }
    }
    let errors = errors.as_ref().map_or_else(|| "No run is published yet.\n".to_owned(), tables::errors);
    let page = root.join(PAGE);
    let text = fs::read_to_string(&page).with_context(|| format!("cannot read {}", page.display()))?;
    let text = replace(&text, "reach", &reach)?;
    drawn.push(Drawn { contents: replace(&text, "errors", &errors)?, path: page });
    Ok(drawn)
}

/// Plots that no result draws any more.
fn leftovers(root: &Path, drawn: &[Drawn]) -> Result<Vec<PathBuf>> {
    let mut there = files::under(&root.join(PLOTS))?;
    there.retain(|path| drawn.iter().all(|drawn| drawn.path != *path));
    Ok(there)
}

/// None where the file is not there.
fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    if !path.exists() {
        return Ok(None);
    }
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).map(Some).with_context(|| format!("{} has another form", path.display()))
}

/// `page` with what stands between the markers of `name` replaced.
fn replace(page: &str, name: &str, contents: &str) -> Result<String> {
    let (begin, end) = (format!("<!-- begin {name}: cargo xtask docs -->\n"), format!("<!-- end {name} -->\n"));
    let parts = page.split_once(&begin).and_then(|(before, rest)| Some((before, rest.split_once(&end)?.1)));
    let (before, after) = parts.with_context(|| format!("{PAGE} lacks the markers of `{name}`"))?;
    Ok(format!("{before}{begin}{contents}{end}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stands_between_the_markers_is_replaced() {
        let page = "above\n<!-- begin reach: cargo xtask docs -->\nold\n<!-- end reach -->\nbelow\n";
        let expected = "above\n<!-- begin reach: cargo xtask docs -->\nnew\n<!-- end reach -->\nbelow\n";
        assert_eq!(replace(page, "reach", "new\n").expect("markers"), expected);
        assert!(replace(page, "errors", "").is_err());
    }

    /// A figure that no run wrote cannot stand on the page.
    #[test]
    fn the_page_and_its_plots_follow_from_the_checked_in_results() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository");
        run(root, true).expect("the page is up to date");
    }
}
