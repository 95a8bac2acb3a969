//! - `inverse`: whatever is written is read back the same, and no bytes make reading panic
//! - `rules`: statements as bytecode and as text
//! - `arbitrary`: generators of everything we can write

mod arbitrary;
mod inverse;
mod rules;
