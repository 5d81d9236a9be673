//! Where a store is: `file:///DIR`, `s3://BUCKET[/PREFIX]`, `gs://BUCKET[/PREFIX]` or
//! `az://CONTAINER[/PREFIX]`.

use super::bucket::{Bucket, Objects};
use crate::error::{Error, ErrorKind, Result};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::local::LocalFileSystem;
use object_store::{ClientConfigKey, ObjectStore, RetryConfig};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use towline_block::GroupName;

/// Longest wait for one request, and for its repetitions: whoever asked asks again.
const REQUEST_MAX: Duration = Duration::from_secs(30);
const RETRIES_MAX: usize = 3;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreUrl {
    place: Place,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Folder(PathBuf),
    /// Azure calls a bucket a container.
    Bucket {
        cloud: Cloud,
        bucket: String,
        prefix: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cloud {
    S3,
    Google,
    Azure,
}

impl Cloud {
    const ALL: [Cloud; 3] = [Cloud::S3, Cloud::Google, Cloud::Azure];

    fn scheme(self) -> &'static str {
        match self {
            Cloud::S3 => "s3",
            Cloud::Google => "gs",
            Cloud::Azure => "az",
        }
    }

    /// Environment variables from which keys and addresses come.
    fn variables(self) -> &'static str {
        match self {
            Cloud::S3 => "AWS_*",
            Cloud::Google => "GOOGLE_*",
            Cloud::Azure => "AZURE_STORAGE_*",
        }
    }

    fn open(self, bucket: &str) -> object_store::Result<Arc<dyn ObjectStore>> {
        // Fails where another part of the process chose already: then that one serves.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let retry = RetryConfig {
            max_retries: RETRIES_MAX,
            retry_timeout: REQUEST_MAX,
            ..RetryConfig::default()
        };
        let timeout = (ClientConfigKey::Timeout, format!("{} s", REQUEST_MAX.as_secs()));
        Ok(match self {
            Cloud::S3 => Arc::new(
                AmazonS3Builder::from_env()
                    .with_config(AmazonS3ConfigKey::Client(timeout.0), timeout.1)
                    .with_bucket_name(bucket)
                    .with_retry(retry)
                    .build()?,
            ),
            Cloud::Google => Arc::new(
                GoogleCloudStorageBuilder::from_env()
                    .with_config(GoogleConfigKey::Client(timeout.0), timeout.1)
                    .with_bucket_name(bucket)
                    .with_retry(retry)
                    .build()?,
            ),
            Cloud::Azure => Arc::new(
                MicrosoftAzureBuilder::from_env()
                    .with_config(AzureConfigKey::Client(timeout.0), timeout.1)
                    .with_container_name(bucket)
                    .with_retry(retry)
                    .build()?,
            ),
        })
    }
}

impl StoreUrl {
    /// Whether `text` is meant as a store, not as HOST:PORT.
    pub fn is_meant(text: &str) -> bool {
        text.contains("://")
    }

    /// The group's part of the store. `make`: a folder that is missing is made.
    ///
    /// Keys and addresses of a cloud come from the environment (docs/OPERATIONS.md, "Stores").
    ///
    /// # Errors
    /// [`ErrorKind::Unreachable`] when a folder is not there;
    /// [`ErrorKind::InvalidInput`] when the environment is not usable.
    pub fn open(&self, group: &GroupName, make: bool) -> Result<Arc<dyn Bucket>> {
        let objects = match &self.place {
            Place::Folder(dir) => {
                if make {
                    std::fs::create_dir_all(dir)
                        .map_err(|e| Error::storage(format!("cannot make {}", dir.display()), e))?;
                }
                let folder = LocalFileSystem::new_with_prefix(dir).map_err(|e| {
                    let what = format!("the store's folder {} is not usable", dir.display());
                    Error::caused(ErrorKind::Unreachable, what, e)
                })?;
                Objects::in_folder(Arc::new(folder.with_fsync(true)), group)
            }
            Place::Bucket { cloud, bucket, prefix } => {
                let opened = cloud.open(bucket).map_err(|e| {
                    let variables = cloud.variables();
                    let what = format!("{self} cannot be used: look at the {variables} variables");
                    Error::caused(ErrorKind::InvalidInput, what, e)
                })?;
                Objects::new(opened, prefix, group)
            }
        };
        Ok(Arc::new(objects))
    }
}

impl FromStr for StoreUrl {
    type Err = Error;

    fn from_str(text: &str) -> Result<StoreUrl> {
        let wrong = |why: &str| {
            let what = format!(
                "store {text:?} is not usable: {why}; write file:///DIR, s3://BUCKET/PREFIX, \
                 gs://BUCKET/PREFIX or az://CONTAINER/PREFIX"
            );
            Error::new(ErrorKind::InvalidInput, what)
        };
        let (scheme, rest) = text.split_once("://").ok_or_else(|| wrong("it is no URL"))?;
        let is_plain = |part: &str| {
            !matches!(part, "" | "." | "..")
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
        };
        match scheme {
            "file" if rest.starts_with('/') && !rest.contains('\0') => {
                Ok(StoreUrl { place: Place::Folder(PathBuf::from(rest)) })
            }
            "file" => Err(wrong("its path is not absolute")),
            _ => {
                let known = Cloud::ALL.into_iter().find(|cloud| cloud.scheme() == scheme);
                let cloud = known.ok_or_else(|| wrong("only file, s3, gs and az are known"))?;
                let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
                let prefix = prefix.trim_end_matches('/');
                if !is_plain(bucket) {
                    return Err(wrong("it names no bucket"));
                }
                if !prefix.is_empty() && !prefix.split('/').all(is_plain) {
                    return Err(wrong("its prefix has parts other than of A-Z a-z 0-9 - . _"));
                }
                let (bucket, prefix) = (bucket.to_owned(), prefix.to_owned());
                Ok(StoreUrl { place: Place::Bucket { cloud, bucket, prefix } })
            }
        }
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Folder(dir) => write!(f, "file://{}", dir.display()),
            Place::Bucket { cloud, bucket, prefix } => {
                write!(f, "{}://{bucket}", cloud.scheme())?;
                if prefix.is_empty() { Ok(()) } else { write!(f, "/{prefix}") }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_read_back_as_written_and_all_else_is_refused() {
        for url in [
            "file:///var/lib/x y",
            "s3://bucket",
            "s3://bucket/a/b-c_d.e",
            "gs://bucket/a",
            "az://container",
        ] {
            assert_eq!(url.parse::<StoreUrl>().unwrap().to_string(), url);
        }
        assert_eq!("s3://b/x/".parse::<StoreUrl>().unwrap().to_string(), "s3://b/x");
        for url in [
            "file://x",
            "file:x",
            "/var",
            "s3://",
            "s3:///x",
            "s3://b/../x",
            "s3://b/a//b",
            "s3://b/%2e%2e",
            "gs://",
            "az://c/../d",
            "http://h/",
        ] {
            let error = url.parse::<StoreUrl>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{url}");
        }
        assert!(StoreUrl::is_meant("s3://b") && !StoreUrl::is_meant("[::1]:4790"));
    }
}
