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
      const compare = (one, two) => {
        const a = key(one), b = key(two), x = Number(a), y = Number(b);
        const numbers = [a !== "" && !Number.isNaN(x), b !== "" && !Number.isNaN(y)];
        if (numbers[0] && numbers[1]) return up ? x - y : y - x;
        if (numbers[0] !== numbers[1]) return numbers[0] ? -1 : 1;
        return up ? a.localeCompare(b) : b.localeCompare(a);
      };
      body.append(...Array.from(body.rows).sort(compare));
    });
  });
}
