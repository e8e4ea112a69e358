//! Group choices: `--model NAME` takes the section `model` from a file of `configs/models/`.

use std::path::{Path, PathBuf};

use super::{
    Diagnostic, LoadOptions, Origin, Source, Span, check::nearest, files::Files, path::normal, yaml::Node,
};

/// Lays every group choice over the layers read so far.
pub(super) fn choose(files: &mut Files<'_>, recipe_folder: &Path) {
    for (section, name) in &files.options.groups {
        match find(section, name, recipe_folder, files.options) {
            Ok(path) => read(files, section, name, &path),
            Err(problem) => {
                files.complete = false;
                files.problems.push(*problem);
            }
        }
    }
}

fn read(files: &mut Files<'_>, section: &str, name: &str, path: &Path) {
    let shown = shown(path, &files.options.folder());
    let first = files.layers.len();
    files.done.clear(); // what the recipe extends may be extended again, below the choice
    match Files::source(path, &shown) {
        Ok(source) => {
            files.read(&source, path, Some(section));
            let new = files.layers.get(first..).unwrap_or_default();
            if files.complete
                && !new.iter().any(|layer| layer.root.map().is_some_and(|map| map.get(section).is_some()))
            {
                let span = Span::new(&source, 0, source.line(1).len());
                files.problems.push(
                    Diagnostic::new("group", &span, format!("this file has no section `{section}`"))
                        .at(section)
                        .rule(format!("the file that --{section} names holds that section"))
                        .help(format!("add `{section}:` to it, or choose another file")),
                );
            }
            // The files that a group's file extends belong to the choice: the lowest of them replaces the section.
            let mut layers = files.layers.split_off(first);
            for layer in &mut layers {
                layer.replaces = None;
            }
            if let Some(lowest) = layers.iter_mut().find(|layer| has(&layer.root, section)) {
                lowest.replaces = Some(section.to_owned());
            }
            files.layers.append(&mut layers);
        }
        Err((what, help)) => files.problems.push(blame(section, name, what).help(help)),
    }
}

fn has(root: &Node, section: &str) -> bool {
    root.map().is_some_and(|map| map.get(section).is_some())
}

/// The file of a choice: a path as it is, a name in the nearest folder `configs/` that has it.
fn find(
    section: &str,
    name: &str,
    recipe_folder: &Path,
    options: &LoadOptions,
) -> Result<PathBuf, Box<Diagnostic>> {
    let is_path = name.contains(['/', '\\'])
        || Path::new(name).extension().is_some_and(|end| end == "yaml" || end == "yml");
    if is_path {
        return Ok(options.absolute(Path::new(name)));
    }
    let folders = folders(section, recipe_folder, options);
    let files = folders
        .iter()
        .flat_map(|folder| [folder.join(format!("{name}.yaml")), folder.join(format!("{name}.yml"))]);
    if let Some(file) = files.into_iter().find(|file| file.is_file()) {
        return Ok(file);
    }
    let names: Vec<Vec<String>> = folders.iter().map(|folder| names(folder)).collect();
    let problem = blame(section, name, format!("there is no {section} named `{name}`"));
    let help = if folders.is_empty() {
        format!(
            "there is no folder {} above the recipe or above the current folder; name a file, or set HYMBA_CONFIGS_DIR",
            home(section)
        )
    } else {
        let all = names.iter().flatten().map(String::as_str);
        let has = |(folder, names): (&PathBuf, &Vec<String>)| {
            let folder = shown(folder, &options.folder());
            if names.is_empty() {
                format!("{folder} has no .yaml file")
            } else {
                format!("{folder} has: {}", nearest::list(names.iter().map(String::as_str)))
            }
        };
        let near = nearest::suggestion("did you mean", name, all);
        near.into_iter().chain(folders.iter().zip(&names).map(has)).collect::<Vec<_>>().join("\n")
    };
    Err(Box::new(problem.help(help)))
}

/// Where the files of a section usually are.
fn home(section: &str) -> String {
    let plural = if section == "model" { "s" } else { "" };
    format!("configs/{section}{plural}")
}

fn blame(section: &str, name: &str, message: String) -> Diagnostic {
    let text = format!("{section} {name}");
    let source = Source::new(format!("--{section}"), &text, Path::new("."), Origin::CommandLine);
    Diagnostic::new("group", &Span::new(&source, section.len() + 1, text.len()), message)
        .at(section)
        .rule(format!("--{section} names a file of {} without its ending, or a path to one", home(section)))
}

/// Folders that hold files for a section, the nearest first; `configs/models` or `configs/model`.
fn folders(section: &str, recipe_folder: &Path, options: &LoadOptions) -> Vec<PathBuf> {
    let here = options.folder();
    let above = recipe_folder.ancestors().chain(here.ancestors()).map(|folder| folder.join("configs"));
    let named = options.configs_dir.iter().map(|folder| options.absolute(folder));
    let both = |configs: PathBuf| [configs.join(format!("{section}s")), configs.join(section)];
    let mut folders: Vec<PathBuf> = Vec::new();
    for folder in
        above.chain(named).flat_map(both).map(|folder| normal(&folder)).filter(|folder| folder.is_dir())
    {
        if !folders.contains(&folder) {
            folders.push(folder);
        }
    }
    folders
}

fn names(folder: &Path) -> Vec<String> {
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let yaml = files.filter(|file| file.extension().is_some_and(|end| end == "yaml" || end == "yml"));
    let mut names: Vec<String> =
        yaml.filter_map(|file| Some(file.file_stem()?.to_string_lossy().into_owned())).collect();
    names.sort();
    names
}

/// A path as it is shortest from the current folder, if it lies below it.
fn shown(path: &Path, here: &Path) -> String {
    super::path::portable(path.strip_prefix(here).unwrap_or(path))
}
