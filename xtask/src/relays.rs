//! The relays that `cargo xtask bench relay` measures ours beside: Debian's, unpacked and not installed, because installing starts them.
//!
//! Postfix is there already: smtp-sink comes from its package.

use anyhow::Result;

use crate::{debian, exec};

/// The package of each, which its program is named after, and packages with parts of it.
const RELAYS: [(&str, &[&str]); 2] = [("haproxy", &[]), ("nginx", &["libnginx-mod-mail"])];

/// Unpacks those that are missing.
pub(crate) fn ensure() -> Result<()> {
    for (program, parts) in RELAYS {
        let folder = exec::target_dir()?.join("lab").join(program);
        if !folder.is_dir() {
            let packages = [&[program], parts].concat().join(" and ");
            exec::say(format!(
                "unpacking {program} from Debian's {packages} (not installing it): is measured beside ours"
            ));
            debian::unpack(program, parts, &folder)?;
        }
    }
    Ok(())
}
