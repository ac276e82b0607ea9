//! Which files a model was made of, so that neither a copy of its weights nor what is known of its text is ever taken
//! for that of others.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use flotilla_protocol::catalog::Quantize;
use flotilla_protocol::weights::Root;

/// The files of a model, and what is made of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FilesIdentity {
    files: Files,
    quantize: Option<Quantize>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Files {
    /// Of a folder as it was at one moment: configuration, templates and weights, by name.
    Folder(PathBuf, Vec<(PathBuf, FileIdentity)>),
    /// Of this root, wherever they lie: their bytes were compared with it.
    Root(Root),
}

/// What changes when a file is replaced or written.
#[derive(Debug, Clone, PartialEq, Eq)]
struct FileIdentity {
    bytes: u64,
    modified: SystemTime,
}

impl FilesIdentity {
    /// Looks at a folder. Taken before its files are read, it is at most older than what is read.
    ///
    /// # Errors
    /// The folder or a file cannot be looked at.
    pub(crate) fn of(folder: &Path, quantize: Option<Quantize>) -> io::Result<Self> {
        let mut files = Vec::new();
        add_files(folder, &mut files)?;
        match add_files(&folder.join(MORE_TEMPLATES), &mut files) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        files.sort_by(|(a, _), (b, _)| a.cmp(b));
        let files = Files::Folder(folder.to_owned(), files);
        Ok(Self { files, quantize })
    }

    /// Files whose bytes were compared with a root, or are before they count.
    pub(crate) const fn of_root(root: Root, quantize: Option<Quantize>) -> Self {
        Self {
            files: Files::Root(root),
            quantize,
        }
    }
}

fn add_files(folder: &Path, files: &mut Vec<(PathBuf, FileIdentity)>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let extension = path.extension().and_then(OsStr::to_str);
        if extension.is_some_and(|extension| KINDS.contains(&extension)) {
            let metadata = fs::metadata(&path)?;
            let identity = FileIdentity {
                bytes: metadata.len(),
                modified: metadata.modified()?,
            };
            files.push((path, identity));
        }
    }
    Ok(())
}

/// All that a model is made of.
const KINDS: [&str; 3] = ["safetensors", "json", "jinja"];
/// The folder of templates for other uses than plain conversation.
const MORE_TEMPLATES: &str = "additional_chat_templates";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::demo_folder;

    #[test]
    fn identity_is_of_folder_files_and_precision() {
        let folder = tempfile::tempdir().unwrap();
        for file in ["config.json", "model.safetensors"] {
            fs::copy(demo_folder("adder").join(file), folder.path().join(file)).unwrap();
        }
        let identity = || FilesIdentity::of(folder.path(), None).unwrap();
        let before = identity();
        assert_eq!(before, identity());
        assert_ne!(
            before,
            FilesIdentity::of(folder.path(), Some(Quantize::Int8)).unwrap()
        );
        let weights = folder.path().join("model.safetensors");
        let file = fs::File::options().write(true).open(&weights).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        assert_ne!(before, identity());
        let before = identity();
        fs::write(folder.path().join("chat_template.jinja"), "{{ messages }}").unwrap();
        let with_template = identity();
        assert_ne!(before, with_template);
        let more = folder.path().join("additional_chat_templates");
        fs::create_dir(&more).unwrap();
        assert_eq!(with_template, identity());
        fs::write(more.join("tool_use.jinja"), "{{ tools }}").unwrap();
        assert_ne!(with_template, identity());
        assert!(FilesIdentity::of(Path::new("/nowhere/model"), None).is_err());
    }
}
