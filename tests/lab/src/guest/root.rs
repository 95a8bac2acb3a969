//! The guest's root folder, and the archive of it that the kernel unpacks into memory.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use super::Guest;
use super::kernel::Kernel;
use crate::apt::output;

const INIT: &str = include_str!("init");
const FOLDERS: [&str; 11] =
    ["bin", "dev", "etc", "guest", "proc", "run", "sbin", "sys", "tmp", "usr/bin", "var/run"];
/// ipset looks protocols up by their names.
const PROTOCOLS: &str = "tcp 6 TCP\nudp 17 UDP\nsctp 132 SCTP\nipv6-icmp 58 IPv6-ICMP\n";

/// Goes with this value.
pub struct Root {
    dir: PathBuf,
    archive: PathBuf,
}

impl Drop for Root {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
        let _ = fs::remove_file(&self.archive);
    }
}

impl Root {
    pub fn make(guest: &Guest, kernel: &Kernel, script: &str) -> anyhow::Result<Root> {
        let name = format!("portolan-guest-{}-{:?}", std::process::id(), std::thread::current().id());
        let dir = std::env::temp_dir().join(name.replace(['(', ')'], ""));
        let root = Root { archive: dir.with_extension("cpio"), dir };
        for folder in FOLDERS {
            fs::create_dir_all(root.dir.join(folder))?;
        }
        root.put_busybox(script)?;
        root.put_modules(guest, kernel)?;
        for program in &guest.programs {
            root.put_program(program).with_context(|| program.display().to_string())?;
        }
        for folder in &guest.folders {
            root.copy(folder, folder).with_context(|| folder.display().to_string())?;
        }
        for (name, text) in &guest.files {
            fs::write(root.dir.join("guest").join(name), text)?;
        }
        root.pack()?;
        Ok(root)
    }

    pub fn archive(&self) -> &Path {
        &self.archive
    }

    fn put_busybox(&self, script: &str) -> anyhow::Result<()> {
        let busybox = find("busybox").context("no busybox")?;
        fs::copy(busybox, self.dir.join("bin/busybox"))?;
        symlink("busybox", self.dir.join("bin/sh"))?;
        // The kernel calls it for a module that it lacks.
        symlink("/bin/busybox", self.dir.join("sbin/modprobe"))?;
        fs::write(self.dir.join("init"), INIT)?;
        fs::set_permissions(self.dir.join("init"), Permissions::from_mode(0o755))?;
        fs::write(self.dir.join("etc/protocols"), PROTOCOLS)?;
        fs::write(self.dir.join("guest/script"), script)?;
        Ok(())
    }

    fn put_modules(&self, guest: &Guest, kernel: &Kernel) -> anyhow::Result<()> {
        let from = kernel.modules();
        let to = Path::new("/lib/modules").join(&kernel.release);
        for name in ["modules.builtin", "modules.builtin.modinfo", "modules.order"] {
            self.copy(&from.join(name), &to.join(name))?;
        }
        for name in &guest.modules {
            self.copy(&from.join("kernel").join(name), &to.join("kernel").join(name))?;
        }
        output(Command::new("depmod").arg("-b").arg(&self.dir).arg(&kernel.release))?;
        Ok(())
    }

    /// To `/usr/bin`, without what only a debugger needs; its libraries where they are.
    fn put_program(&self, program: &Path) -> anyhow::Result<()> {
        let source = find(program).context("not found")?;
        let target = self.dir.join("usr/bin").join(program.file_name().context("name")?);
        output(Command::new("strip").arg("-o").arg(target).arg(&source))?;
        for library in libraries(&source)? {
            self.copy(&library, &library)?;
        }
        Ok(())
    }

    /// A file, or a folder with all that is in it.
    fn copy(&self, from: &Path, to: &Path) -> anyhow::Result<()> {
        let target = self.dir.join(to.strip_prefix("/").context("an absolute path")?);
        if target.is_file() {
            return Ok(());
        }
        fs::create_dir_all(target.parent().context("a parent")?)?;
        if !from.is_dir() {
            return fs::copy(from, target).map(drop).with_context(|| from.display().to_string());
        }
        for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
            let name = entry?.file_name();
            self.copy(&from.join(&name), &to.join(&name))?;
        }
        Ok(())
    }

    /// Not compressed: unpacking is dear in an emulated machine.
    fn pack(&self) -> anyhow::Result<()> {
        let pack = "cd \"$1\" && find . | busybox cpio -o -H newc >\"$2\"";
        output(Command::new("sh").args(["-c", pack, "sh"]).arg(&self.dir).arg(&self.archive)).map(drop)
    }
}

/// By the dynamic linker's own account; none of a static program.
fn libraries(program: &Path) -> anyhow::Result<BTreeSet<PathBuf>> {
    let text = output(Command::new("ldd").arg(program))?;
    Ok(text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
}

/// Where a program is, or the file itself if a path is given. Administrators' folders are not on every user's path.
pub fn find(program: impl AsRef<Path>) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    folders.map(|folder| folder.join(&program)).find(|path| path.is_file())
}
