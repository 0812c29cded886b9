"use strict";
// Runs in a report's page, and tells the frame around it what is there.
addEventListener("load", () => {
  const root = document.documentElement;
  const parts = [...document.querySelectorAll("h1, h2, p, li, .legend > span, .label, .ticks > span, .scroll, input, .chart > svg")];
  const boxes = parts.map((part) => [part, part.getBoundingClientRect()]).filter(([, box]) => box.width && box.height);
  const overlaps = [];
  boxes.forEach(([one, a], index) => {
    for (const [other, b] of boxes.slice(index + 1)) {
      if (one.contains(other) || other.contains(one)) continue;
      const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (wide > 1 && high > 1) overlaps.push(`${one.textContent.slice(0, 40)} | ${other.textContent.slice(0, 40)}`);
    }
  });
  const cells = [...document.querySelectorAll("td, th")].filter((cell) => cell.scrollWidth > cell.clientWidth + 1);
  const values = document.getElementById("values");
  const column = (name) => {
    const index = [...values.tHead.rows[0].cells].findIndex((cell) => cell.textContent === name);
    return [...values.tBodies[0].rows].filter((row) => !row.hidden).map((row) => row.cells[index].textContent);
  };
  const press = (name) => [...values.querySelectorAll("th button")].find((b) => b.textContent === name).click();
  press("released ms");
  const up = column("released ms");
  press("released ms");
  const down = column("released ms");
  const input = document.querySelector("input");
  input.value = "Call-is-no-word";
  input.dispatchEvent(new Event("input"));
  const none = column("value").length;
  input.value = "keep MM";
  input.dispatchEvent(new Event("input"));
  parent.postMessage(JSON.stringify({
    pageWidth: root.scrollWidth,
    frameWidth: root.clientWidth,
    overlaps,
    cells: cells.map((cell) => cell.textContent),
    up, down, none,
    decisions: column("decision"),
    shown: document.getElementById("shown").textContent,
    background: getComputedStyle(document.body).backgroundColor,
    ink: getComputedStyle(document.body).color,
    errors: window.errors,
  }), "*");
});
