use crate::{Expr, Rule, TableFamily};

impl Rule {
    /// The rule in the kernel's language.
    pub fn compile(&self, family: TableFamily) -> Vec<Expr> {
        let _ = family;
        Vec::new()
    }
}
