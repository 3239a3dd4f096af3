//! Tenants in a TOML file, for runs that are repeated: `tenants = ["chat=llama-3.2-1b,class=latency", "embed=bert-large"]`, each as `--tenant`
//! takes it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::spec::{TenantRequest, TenantRequestError};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TenantsFile {
    tenants: Vec<String>,
}

/// A file of tenants that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TenantsFileError {
    /// It cannot be read.
    #[error("{path}: cannot be read ({source}); give a file with tenants = [\"NAME=MODEL,...\", ...]")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why the system refused.
        source: io::Error,
    },
    /// It is not the TOML that is wanted.
    #[error("{path}: {problem}; write tenants = [\"NAME=MODEL,...\", ...]")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What the parser said, with line and column.
        problem: String,
    },
    /// One of its tenants cannot be read.
    #[error("{path}: {source}")]
    Tenant {
        /// The file.
        path: PathBuf,
        /// Which, and why.
        source: TenantRequestError,
    },
}

/// The tenants of a file, in its order.
///
/// # Errors
/// [`TenantsFileError`], naming the file.
pub fn read(path: &Path) -> Result<Vec<TenantRequest>, TenantsFileError> {
    let text = fs::read_to_string(path).map_err(|source| TenantsFileError::Unreadable { path: path.to_owned(), source })?;
    let file: TenantsFile = toml::from_str(&text)
        .map_err(|error| TenantsFileError::Malformed { path: path.to_owned(), problem: error.to_string().trim().replace('\n', " ") })?;
    if file.tenants.is_empty() {
        return Err(TenantsFileError::Malformed { path: path.to_owned(), problem: "there is no tenant".to_owned() });
    }
    let parse = |tenant: &String| tenant.parse().map_err(|source| TenantsFileError::Tenant { path: path.to_owned(), source });
    file.tenants.iter().map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<Vec<TenantRequest>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.toml");
        fs::write(&path, text).unwrap();
        read(&path).map_err(|error| error.to_string())
    }

    #[test]
    fn a_file_holds_tenants_as_the_command_line_takes_them() {
        let tenants = read_text("tenants = [\"chat=llama-3.2-1b,class=latency\", \"embed=bert-large,batch=4\"]").unwrap();
        assert_eq!(tenants, ["chat=llama-3.2-1b,class=latency".parse().unwrap(), "embed=bert-large,batch=4".parse().unwrap()]);
    }

    #[test]
    fn a_file_that_cannot_be_used_is_named_with_the_place() {
        for (text, part) in
            [("tenants = [", "line 1"), ("tenant = []", "unknown field"), ("tenants = []", "no tenant"), ("tenants = [\"bert\"]", "no `=`")]
        {
            let error = read_text(text).unwrap_err();
            assert!(error.contains("run.toml: ") && error.contains(part), "{error}");
            assert!(!error.contains('\n'), "{error}");
        }
        assert!(read(Path::new("absent.toml")).unwrap_err().to_string().contains("absent.toml: cannot be read"));
    }
}
