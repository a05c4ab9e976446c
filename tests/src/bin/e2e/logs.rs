//! Where output goes that nobody attends: `file://` and `binary://` (containerd, runtime v2, "Logging").

use crate::command::{self, DEADLINE};
use crate::context::Context;
use anyhow::{Result, bail};
use std::os::unix::fs::PermissionsExt;

crate::cases!(
    crate::Scope::OneOrEach;
    output_goes_to_a_logging_program,
    a_logging_program_that_is_not_there_is_named;
    crate::Scope::AllEach;
    output_goes_to_a_file,
);

const SCRIPT: &str = "echo to out; echo to err >&2";

fn output_goes_to_a_file(context: &Context) -> Result<()> {
    let directory = format!("/tmp/{}", context.fresh_id());
    let file = format!("{directory}/made/log");
    let container = context
        .container()
        .flag(format!("--log-uri=file://{file}"))
        .detached(&["sh", "-c", SCRIPT])?;
    container.await_status("STOPPED")?;
    container.delete_task()?.expect_code(0)?;
    let log = std::fs::read_to_string(&file)?;
    if !(log.contains("to out\n") && log.contains("to err\n")) {
        bail!("the log is {log:?}");
    }
    Ok(std::fs::remove_dir_all(directory)?)
}

fn output_goes_to_a_logging_program(context: &Context) -> Result<()> {
    let directory = format!("/tmp/{}", context.fresh_id());
    std::fs::create_dir(&directory)?;
    let (program, log) = (format!("{directory}/logger"), format!("{directory}/log"));
    let script = "#!/bin/sh\nexec 5>&-\n{ cat <&3; cat <&4; echo $CONTAINER_NAMESPACE $CONTAINER_ID; } > $2\n";
    std::fs::write(&program, script)?;
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755))?;
    let container = context
        .container()
        .flag(format!("--log-uri=binary://{program}?log={log}"))
        .detached(&["sh", "-c", SCRIPT])?;
    container.await_status("STOPPED")?;
    let expected = format!("to out\nto err\ndefault {}\n", container.id);
    container.delete_task()?.expect_code(0)?;
    command::eventually("the logging program has ended", DEADLINE, || {
        Ok(std::fs::read_to_string(&log).is_ok_and(|log| log == expected))
    })?;
    Ok(std::fs::remove_dir_all(directory)?)
}

fn a_logging_program_that_is_not_there_is_named(context: &Context) -> Result<()> {
    let run = context.container().flag("--log-uri=binary:///nowhere/logger").flag("--detach");
    let id = run.id().to_owned();
    command::output(&mut run.command(&["true"]))?.expect_error(&["/nowhere/logger"])?;
    context.ctr(&["container", "delete", &id])?;
    Ok(())
}
