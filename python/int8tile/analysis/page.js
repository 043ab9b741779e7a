// Sorts the table of layers by the last number of each cell, or by the text of its first column.
for (const head of document.querySelectorAll(".layers thead th")) {
  head.addEventListener("click", () => {
    const column = head.cellIndex, body = head.closest("table").tBodies[0];
    const down = head.dataset.order !== "down";
    const key = (row) => {
      const text = row.cells[column].textContent;
      if (column === 0) return text;
      const numbers = text.replace(/\(.*?\)|\/\d+/g, "").match(/-?\d+(\.\d+)?(e[-+]?\d+)?/g);
      return numbers ? Number(numbers[numbers.length - 1]) : -Infinity;
    };
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      const order = x < y ? -1 : x > y ? 1 : 0;
      return down ? -order : order;
    });
    for (const other of head.parentNode.cells) delete other.dataset.order;
    head.dataset.order = down ? "down" : "up";
    body.append(...rows);
  });
}
