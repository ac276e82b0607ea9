//! One declaration a setting: its key, rule and default, from which reading, merging and the list of
//! known keys all follow.

use figment::value::{Empty, Value};

use crate::layer::Layers;
use crate::rule::{Rule, Visibility, Wording};
use crate::{Fault, Problem};

/// A part of the configuration that can be read from the merged layers.
pub(crate) trait Section: Sized {
    /// Appends the keys of this section and of those inside it.
    fn list(known: &mut Vec<KnownKey>);

    /// Reads every key, so that all faults are found; `None` when there was one.
    fn read(reader: &mut Reader<'_>) -> Option<Self>;
}

/// What is known about a key without its value.
#[derive(Debug, Clone)]
pub(crate) struct KnownKey {
    pub(crate) key: &'static str,
    pub(crate) default: Option<Value>,
    pub(crate) wording: Wording,
    pub(crate) visibility: Visibility,
}

/// Declares one key: how it is described and how it is read.
pub(crate) trait Declaration {
    type Out;

    fn describe(&self, key: &'static str) -> KnownKey;

    fn parse(&self, value: Option<&Value>) -> Result<Self::Out, Problem>;
}

/// A setting that always has a value.
pub(crate) struct Required<R> {
    rule: R,
    default: Value,
}

/// A setting with this default, as it would be written in the file.
pub(crate) fn required<R: Rule>(rule: R, default: impl Into<Value>) -> Required<R> {
    let default = default.into();
    Required { rule, default }
}

impl<R: Rule> Declaration for Required<R> {
    type Out = R::Out;

    fn describe(&self, key: &'static str) -> KnownKey {
        KnownKey {
            key,
            default: Some(self.default.clone()),
            wording: R::WORDING,
            visibility: R::VISIBILITY,
        }
    }

    fn parse(&self, value: Option<&Value>) -> Result<R::Out, Problem> {
        self.rule.parse(value.unwrap_or(&self.default))
    }
}

/// A setting that may be left out.
pub(crate) struct Optional<R> {
    rule: R,
}

/// A setting without a default. An empty text leaves it out as well, because compose files cannot
/// unset a variable.
pub(crate) fn optional<R: Rule>(rule: R) -> Optional<R> {
    Optional { rule }
}

impl<R: Rule> Declaration for Optional<R> {
    type Out = Option<R::Out>;

    fn describe(&self, key: &'static str) -> KnownKey {
        KnownKey {
            key,
            default: None,
            wording: R::WORDING,
            visibility: R::VISIBILITY,
        }
    }

    fn parse(&self, value: Option<&Value>) -> Result<Option<R::Out>, Problem> {
        match value {
            None | Some(Value::Empty(_, Empty::None | Empty::Unit)) => Ok(None),
            Some(value) if value.as_str() == Some("") => Ok(None),
            Some(value) => self.rule.parse(value).map(Some),
        }
    }
}

/// Reads settings one by one and keeps every fault.
pub(crate) struct Reader<'a> {
    layers: &'a Layers,
    faults: Vec<Fault>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(layers: &'a Layers) -> Self {
        let faults = Vec::new();
        Self { layers, faults }
    }

    pub(crate) fn read<D: Declaration>(&mut self, key: &'static str, setting: &D) -> Option<D::Out> {
        let value = self.layers.value(key);
        let problem = match setting.parse(value.as_ref()) {
            Ok(out) => return Some(out),
            Err(problem) => problem,
        };
        self.faults.push(Fault::Setting {
            key: key.to_owned(),
            source_of_value: self.layers.source(key, value.as_ref()),
            problem: Box::new(problem),
        });
        None
    }

    /// Notes that two valid settings do not go together; the first one is named.
    pub(crate) fn conflict(&mut self, key: &'static str, other: &'static str, advice: &'static str) {
        let value = self.layers.value(key);
        self.faults.push(Fault::Setting {
            key: key.to_owned(),
            source_of_value: self.layers.source(key, value.as_ref()),
            problem: Box::new(Problem::Conflict { other, advice }),
        });
    }

    pub(crate) fn into_faults(self) -> Vec<Fault> {
        self.faults
    }
}

/// Declares a section: `field: Type = "key", declaration;` for settings, and `with { field: Section; }`
/// after them for sections inside it.
macro_rules! section {
    (
        $(#[$doc:meta])*
        pub struct $name:ident at $path:literal {
            $($(#[$field_doc:meta])* $field:ident: $type:ty = $key:literal, $setting:expr;)*
        } $(with { $($(#[$inner_doc:meta])* $inner:ident: $section:ty;)* })?
    ) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $type,)*
            $($($(#[$inner_doc])* pub $inner: $section,)*)?
        }

        impl $crate::schema::Section for $name {
            fn list(known: &mut Vec<$crate::schema::KnownKey>) {
                $(known.push($crate::schema::Declaration::describe(
                    &$setting,
                    concat!($path, ".", $key),
                ));)*
                $($(<$section as $crate::schema::Section>::list(known);)*)?
            }

            fn read(reader: &mut $crate::schema::Reader<'_>) -> Option<Self> {
                $(let $field = reader.read(concat!($path, ".", $key), &$setting);)*
                $($(let $inner = <$section as $crate::schema::Section>::read(reader);)*)?
                Some(Self {
                    $($field: $field?,)*
                    $($($inner: $inner?,)*)?
                })
            }
        }
    };
}
pub(crate) use section;
