"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  table.querySelectorAll("thead th").forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = (row) => row.cells[column].dataset.sort;
      // Numbers, then words, then what is missing, whichever way the column is sorted.
      const rank = (text) => (text === "" || text === "-" ? 2 : Number.isNaN(Number(text)) ? 1 : 0);
      const compare = (one, two) => {
        const a = key(one), b = key(two), order = rank(a) - rank(b);
        if (order || rank(a) === 2) return order;
        const way = rank(a) ? a.localeCompare(b, "en", { numeric: true }) : Number(a) - Number(b);
        return up ? way : -way;
      };
      body.append(...Array.from(body.rows).sort(compare));
    });
  });
}
