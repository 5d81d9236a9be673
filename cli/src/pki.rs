//! `towline pki`: the certificates by which shippers and receivers know each other.

use crate::exit::Exit;
use crate::output;
use clap::{ArgGroup, Subcommand};
use serde::Serialize;
use std::path::{Path, PathBuf};
use towline_block::GroupName;
use towline_shipper::batch::keyfile;
use towline_shipper::pki::{self, Files};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make a certificate authority in DIR.
    Init {
        dir: PathBuf,
        /// Replace an existing one: all certificates it issued stop working.
        #[arg(long)]
        force: bool,
        #[arg(long)]
        json: bool,
    },
    /// Issue the receiver's certificate, or the one that may write a group.
    #[command(group = ArgGroup::new("holder").required(true))]
    Issue {
        dir: PathBuf,
        /// For `towline receive`.
        #[arg(long, group = "holder")]
        receiver: bool,
        /// For `towline ship` of this group: the right to write it, and no other.
        #[arg(long, group = "holder", value_name = "GROUP")]
        group: Option<GroupName>,
        /// Replace an existing one.
        #[arg(long)]
        force: bool,
        #[arg(long)]
        json: bool,
    },
    /// Make the key file by which a group's batches are sealed.
    Key {
        file: PathBuf,
        /// Add a key to an existing file: it seals from then on, the others still open.
        /// Give the file to the receiver first.
        #[arg(long)]
        rotate: bool,
        #[arg(long)]
        json: bool,
    },
}

#[derive(Serialize)]
struct MadeKey {
    file: PathBuf,
    /// Names the key in batches and messages; not secret.
    id: String,
}

#[derive(Serialize)]
struct Made {
    certificate: PathBuf,
    key: PathBuf,
}

pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let (files, json) = match &args.action {
        Action::Init { dir, force, json } => (pki::init(dir, *force)?, *json),
        Action::Issue { dir, group: Some(group), force, json, .. } => {
            (pki::issue_group(dir, group, *force)?, *json)
        }
        Action::Issue { dir, force, json, .. } => (pki::issue_receiver(dir, *force)?, *json),
        Action::Key { file, rotate, json } => return key(file, *rotate, *json),
    };
    tell(files, json)?;
    Ok(Exit::Ok)
}

fn key(file: &Path, rotate: bool, json: bool) -> anyhow::Result<Exit> {
    let id = if rotate { keyfile::rotate(file)? } else { keyfile::make(file)? };
    if json {
        output::json(&MadeKey { file: file.to_owned(), id: id.to_string() })?;
    } else {
        output::text_line(&format!(
            "key   {id}\nfile  {} (keep it secret, and a copy elsewhere: without it nothing that was \
             sealed opens again)",
            file.display()
        ))?;
    }
    Ok(Exit::Ok)
}

fn tell(files: Files, json: bool) -> anyhow::Result<()> {
    if json {
        return output::json(&Made { certificate: files.certificate, key: files.key });
    }
    output::text_line(&format!(
        "certificate  {}\nkey          {} (keep it secret)",
        files.certificate.display(),
        files.key.display()
    ))
}
