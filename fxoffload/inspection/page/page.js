"use strict";
// Tables with data-sortable: a click on a heading sorts by it, another one the other way round.
for (const table of document.querySelectorAll("table[data-sortable]")) {
  const body = table.tBodies[0];
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, index) => {
    heading.querySelector("button").addEventListener("click", () => {
      const up = heading.getAttribute("aria-sort") !== "ascending";
      headings.forEach((each) => each.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", up ? "ascending" : "descending");
      const numeric = heading.classList.contains("number");
      const key = (row) => {
        const text = row.cells[index].textContent;
        return numeric ? (text === "" ? -Infinity : parseFloat(text)) : text;
      };
      const rows = [...body.rows].map((row) => [key(row), row]);
      const compare = numeric ? (a, b) => a - b : (a, b) => a.localeCompare(b);
      rows.sort((a, b) => (up ? 1 : -1) * (compare(a[0], b[0]) || 0));
      body.append(...rows.map((pair) => pair[1]));
    });
  });
}
// Only rows that have every word stay.
for (const input of document.querySelectorAll("input[data-filters]")) {
  const table = document.getElementById(input.dataset.filters);
  const count = document.getElementById(input.dataset.counts);
  const rows = [...table.tBodies[0].rows].map((row) => [row, row.textContent.toLowerCase()]);
  const apply = () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const [row, text] of rows) {
      row.hidden = !words.every((word) => text.includes(word));
      shown += row.hidden ? 0 : 1;
    }
    count.textContent = `${shown} of ${rows.length} values`;
  };
  input.addEventListener("input", apply);
  apply();
}
