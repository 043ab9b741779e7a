// Sorts a table of layers by the keys of a column, or by the text of its first one. Cells without a
// key come last either way.
const number = (text) => Number(text.replace(/inf$/, "Infinity"));
for (const head of document.querySelectorAll(".layers thead th")) {
  head.addEventListener("click", () => {
    const column = head.cellIndex, body = head.closest("table").tBodies[0];
    const down = head.dataset.order !== "down";
    const compare = (a, b) => {
      if (column === 0) return a.textContent.localeCompare(b.textContent, "en", { numeric: true });
      const [x, y] = [a.dataset.key, b.dataset.key];
      if (x === y) return 0;
      if (x === "" || y === "") return (x === "") === down ? -1 : 1;
      return number(x) < number(y) ? -1 : 1;
    };
    const rows = [...body.rows].sort((a, b) => {
      const order = compare(a.cells[column], b.cells[column]);
      return down ? -order : order;
    });
    for (const other of head.parentNode.cells) delete other.dataset.order;
    head.dataset.order = down ? "down" : "up";
    body.append(...rows);
  });
}
