//! Typed settings of every Flotilla role: defaults, files, environment, flags.
