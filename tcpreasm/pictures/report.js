"use strict";
// Sorts and filters the table. What is chosen stands in the address: #sort=-sent&filter=10.0.0.1 (- for descending). Texts of the page are
// only ever read here, and never made into elements.
(() => {
  const table = document.querySelector("#conversations");
  if (!table) return;
  const body = table.tBodies[0];
  const rows = Array.from(body.rows);
  const heads = Array.from(table.tHead.rows[0].cells);
  const filter = document.querySelector("#filter");
  const told = document.querySelector("#told");
  const values = rows.map((row) => Array.from(row.cells, (cell) => cell.dataset.value ?? cell.textContent));
  const texts = rows.map((row) => row.textContent.toLowerCase());
  const chosen = { sort: "number", descending: false, filter: "" };

  // Whole numbers of any length, as times in nanoseconds are.
  const numeric = heads.map((head) => head.classList.contains("number"));
  const compare = (one, other, column) => {
    const a = values[one][column], b = values[other][column];
    if (!numeric[column]) return a < b ? -1 : Number(a > b);
    const [x, y] = [BigInt(a || "-1"), BigInt(b || "-1")];
    return x < y ? -1 : Number(x > y);
  };

  function show() {
    const column = heads.findIndex((head) => head.dataset.name === chosen.sort);
    const order = rows.map((_, at) => at);
    const sign = chosen.descending ? -1 : 1;
    if (column >= 0) order.sort((one, other) => sign * compare(one, other, column) || one - other);
    body.append(...order.map((at) => rows[at]));
    for (const head of heads) head.removeAttribute("aria-sort");
    if (column >= 0) heads[column].setAttribute("aria-sort", chosen.descending ? "descending" : "ascending");
    const words = chosen.filter.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    rows.forEach((row, at) => {
      row.hidden = !words.every((word) => texts[at].includes(word));
      shown += Number(!row.hidden);
    });
    told.textContent = shown === rows.length ? "" : `${shown} of ${rows.length}`;
  }

  function read() {
    const wanted = new URLSearchParams(location.hash.slice(1));
    const sort = wanted.get("sort") ?? "number";
    chosen.descending = sort.startsWith("-");
    chosen.sort = sort.replace(/^-/, "");
    chosen.filter = wanted.get("filter") ?? "";
    filter.value = chosen.filter;
    show();
  }

  function choose(change) {
    Object.assign(chosen, change);
    const said = new URLSearchParams({ sort: (chosen.descending ? "-" : "") + chosen.sort });
    if (chosen.filter) said.set("filter", chosen.filter);
    history.replaceState(null, "", "#" + said);
    show();
  }

  heads.forEach((head) => head.querySelector("button")?.addEventListener("click", () => {
    const name = head.dataset.name;
    // What is largest comes first; a second click turns it round.
    choose({ sort: name, descending: chosen.sort === name ? !chosen.descending : name !== "number" && head.classList.contains("number") });
  }));
  filter.addEventListener("input", () => choose({ filter: filter.value }));
  addEventListener("hashchange", read);
  read();
})();
