"use strict";
// Sorting, searching and folding of tables, and all folds open for print. Without this script the page shows everything.
(() => {
  const FOLDED = 10, MOST = 25;
  const cell = (row, i) => {
    const at = row.cells[i];
    const value = at.dataset.v === undefined ? at.textContent.trim() : at.dataset.v;
    const number = Number(value);
    return value !== "" && !Number.isNaN(number) ? number : value;
  };
  const compare = (a, b) => {
    if (typeof a === typeof b) return a < b ? -1 : a > b ? 1 : 0;
    return typeof a === "number" ? -1 : 1; // what has no number comes last
  };
  for (const table of document.querySelectorAll("table.live")) {
    const body = table.tBodies[0], rows = [...body.rows], heads = [...table.tHead.rows[0].cells];
    const tools = document.createElement("div"), said = document.createElement("span");
    tools.className = "tools";
    said.className = "dim small";
    said.setAttribute("role", "status");
    let folded = rows.length > MOST, wanted = "";
    const show = () => {
      let seen = 0, matching = 0;
      for (const row of body.rows) {
        const match = wanted === "" || row.textContent.toLowerCase().includes(wanted);
        matching += match;
        row.hidden = !match || (folded && wanted === "" && seen >= FOLDED);
        seen += !row.hidden;
      }
      said.textContent = `${seen} of ${rows.length} shown`;
      if (fold) fold.textContent = folded ? `Show all ${rows.length}` : `Show the first ${FOLDED}`;
    };
    const label = document.createElement("label"), input = document.createElement("input");
    input.type = "search";
    label.append("Search ", input);
    input.addEventListener("input", () => { wanted = input.value.trim().toLowerCase(); show(); });
    tools.append(label);
    let fold = null;
    if (folded) {
      fold = document.createElement("button");
      fold.type = "button";
      fold.addEventListener("click", () => { folded = !folded; show(); });
      tools.append(fold);
    }
    tools.append(said);
    const choose = document.createElement("select"), chooser = document.createElement("label");
    chooser.className = "narrow";
    chooser.append("Sort by ", choose);
    const sort = (i, direction) => {
      heads.forEach((h, j) => j === i ? h.setAttribute("aria-sort", direction) : h.removeAttribute("aria-sort"));
      const sign = direction === "ascending" ? 1 : -1;
      rows.sort((a, b) => {
        const x = cell(a, i), y = cell(b, i);
        return (typeof x === typeof y ? sign : 1) * compare(x, y);
      });
      body.append(...rows);
      show();
    };
    heads.forEach((head, i) => {
      if (head.dataset.sort === undefined) return;
      const option = document.createElement("option");
      option.value = String(i);
      option.textContent = head.textContent.trim();
      choose.append(option);
      const button = document.createElement("button");
      button.type = "button";
      button.append(head.dataset.title || head.textContent.trim());
      if (head.title) { button.title = head.title; head.removeAttribute("title"); }
      head.replaceChildren(button);
      button.addEventListener("click", () => sort(i, head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending"));
    });
    choose.addEventListener("change", () => sort(Number(choose.value), "ascending"));
    tools.append(chooser);
    table.before(tools);
    show();
  }
  addEventListener("beforeprint", () => {
    for (const fold of document.querySelectorAll("section > details, .named details")) if (!fold.open) { fold.open = true; fold.dataset.printed = ""; }
  });
  addEventListener("afterprint", () => {
    for (const fold of document.querySelectorAll("details[data-printed]")) { fold.open = false; delete fold.dataset.printed; }
  });
})();
