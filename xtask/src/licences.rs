//! Whether the licences of all dependencies are among those that `deny.toml`
//! allows.
//!
//! `deny.toml` is cargo-deny's, and who has cargo-deny may use it; building it
//! takes longer than all our tests, and this part of it is small.
//!
//! Key function: [`check`]. Source: the SPDX specification, annex "SPDX license
//! expressions"; cargo-deny's book, "licenses".

use std::fs;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::workspace::Workspace;

#[derive(Deserialize)]
struct Deny {
    licenses: Licenses,
}

#[derive(Deserialize)]
struct Licenses {
    allow: Vec<String>,
    #[serde(default)]
    exceptions: Vec<Exception>,
}

#[derive(Deserialize)]
struct Exception {
    #[serde(rename = "crate")]
    name: String,
    allow: Vec<String>,
}

/// Checks every package that Cargo.lock names.
pub(crate) fn check() -> Result<()> {
    let workspace = Workspace::with_dependencies()?;
    let path = workspace.root.join("deny.toml");
    let text = fs::read_to_string(&path).context("deny.toml")?;
    let deny: Deny = basic_toml::from_str(&text).context("deny.toml")?;
    let mut refused = Vec::new();
    for package in &workspace.packages {
        let licence = package.license.as_deref().unwrap_or("none");
        let exceptions = deny.licenses.exceptions.iter();
        let allowed: Vec<&str> = exceptions
            .filter(|exception| exception.name == package.name)
            .flat_map(|exception| &exception.allow)
            .chain(&deny.licenses.allow)
            .map(String::as_str)
            .collect();
        if !allows(licence, &allowed)? {
            refused.push(format!("{} {}: {licence}", package.name, package.version));
        }
    }
    ensure!(
        refused.is_empty(),
        "licences that deny.toml does not allow: {}",
        refused.join("; ")
    );
    println!(
        "{} packages, all with allowed licences",
        workspace.packages.len()
    );
    Ok(())
}

/// Whether one may choose only `allowed` licences under an SPDX expression.
fn allows(expression: &str, allowed: &[&str]) -> Result<bool> {
    // Old manifests write `/` for OR.
    let text = expression
        .replace('(', " ( ")
        .replace(')', " ) ")
        .replace('/', " OR ");
    let mut words = text.split_whitespace().peekable();
    let value = any_of(&mut words, allowed)?;
    match words.next() {
        None => Ok(value),
        Some(word) => bail!("odd licence expression at {word}: {expression}"),
    }
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn any_of(words: &mut Words<'_>, allowed: &[&str]) -> Result<bool> {
    let mut value = all_of(words, allowed)?;
    while words.next_if_eq(&"OR").is_some() {
        value |= all_of(words, allowed)?;
    }
    Ok(value)
}

fn all_of(words: &mut Words<'_>, allowed: &[&str]) -> Result<bool> {
    let mut value = one(words, allowed)?;
    while words.next_if_eq(&"AND").is_some() {
        value &= one(words, allowed)?;
    }
    Ok(value)
}

fn one(words: &mut Words<'_>, allowed: &[&str]) -> Result<bool> {
    let word = words
        .next()
        .context("a licence expression ends too early")?;
    if word == "(" {
        let value = any_of(words, allowed)?;
        ensure!(words.next() == Some(")"), "a licence expression lacks a )");
        return Ok(value);
    }
    let mut name = word.to_owned();
    if words.next_if_eq(&"WITH").is_some() {
        name = format!("{word} WITH {}", words.next().context("WITH what?")?);
    }
    Ok(allowed.contains(&&*name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_understood() {
        let allowed = ["MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception"];
        for (expression, want) in [
            ("MIT", true),
            ("GPL-2.0", false),
            ("MIT OR GPL-2.0", true),
            ("GPL-2.0/MIT", true),
            ("MIT AND GPL-2.0", false),
            ("MIT AND (GPL-2.0 OR Apache-2.0)", true),
            ("(MIT OR Apache-2.0) AND Unicode-3.0", false),
            ("Apache-2.0 WITH LLVM-exception", true),
            ("GPL-2.0 WITH LLVM-exception", false),
            ("none", false),
        ] {
            assert_eq!(allows(expression, &allowed).unwrap(), want, "{expression}");
        }
        for odd in ["", "(MIT", "MIT)", "MIT OR", "MIT MIT"] {
            assert!(allows(odd, &allowed).is_err(), "{odd}");
        }
    }
}
