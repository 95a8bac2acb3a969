//! Columns of text, each as wide as its widest cell.

/// Rows of one table; the first is the heading.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(heading: &[&str]) -> Table {
        Table { rows: vec![heading.iter().map(|cell| cell.to_string()).collect()] }
    }

    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// The table under its title, or the title and `none` where there are no rows.
    pub fn render(&self, title: &str) -> String {
        if self.rows.len() == 1 {
            return format!("{title}: none\n\n");
        }
        let lines: Vec<String> = self.rows.iter().map(|row| self.line(row)).collect();
        format!("{title}\n{}\n\n", lines.join("\n"))
    }

    fn line(&self, row: &[String]) -> String {
        let cells: Vec<String> = row
            .iter()
            .enumerate()
            .map(|(column, cell)| format!("{cell:<width$}", width = self.width(column)))
            .collect();
        format!("  {}", cells.join("  ").trim_end())
    }

    fn width(&self, column: usize) -> usize {
        self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)
    }
}
