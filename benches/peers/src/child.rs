//! Parts of a section that have a process of their own, for which the program calls itself: what another has freed and
//! not given back is neither its memory nor memory that it gets for less.

use std::process::{Command, Stdio};

use crate::Result;

/// The argument with which the program calls itself. The name of the section comes next.
pub(crate) const CHILD: &str = "--child";

/// What a child does: it gets its arguments and returns figures. What cannot be found out is `NaN`.
pub(crate) type Part = fn(&[String]) -> Result<Vec<f64>>;

/// Has another process do it, and returns its figures.
pub(crate) fn figures(section: &str, args: &[&str]) -> Result<Vec<f64>> {
    let output =
        Command::new(std::env::current_exe()?).args([CHILD, section]).args(args).stderr(Stdio::inherit()).output()?;
    let failed = |what: &str| format!("{section} {}: {what}", args.join(" "));
    if !output.status.success() {
        return Err(failed(&output.status.to_string()).into());
    }
    let figures = str::from_utf8(&output.stdout)?.split_whitespace().map(str::parse);
    figures.collect::<Result<_, _>>().map_err(|_| failed("it did not print numbers").into())
}

/// The same, for those who know how many there are.
pub(crate) fn exactly<const N: usize>(section: &str, args: &[&str]) -> Result<[f64; N]> {
    let figures = figures(section, args)?;
    figures.try_into().map_err(|got: Vec<f64>| format!("{section}: {} figures, not {N}", got.len()).into())
}

/// In the other process.
pub(crate) fn run(part: Part, args: &[String]) -> Result<()> {
    let figures: Vec<String> = part(args)?.iter().map(f64::to_string).collect();
    println!("{}", figures.join(" "));
    Ok(())
}
