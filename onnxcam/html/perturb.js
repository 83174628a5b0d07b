"use strict";
(() => {
  const find = (id) => document.getElementById(id);
  const data = JSON.parse(find("data").textContent);
  const maps = [...find("maps").querySelectorAll("img")];
  const layers = maps.length / data.places.length;
  const row = find("row"), column = find("column");

  const show = () => {
    const index = Number(row.value) * data.columns + Number(column.value);
    const place = data.places[index];
    const [left, top, width, height] = place.box;
    Object.assign(find("box").style, { left: `${left}%`, top: `${top}%`, width: `${width}%`, height: `${height}%` });
    find("answer").textContent = place.text;
    find("after").replaceChildren(...place.after.map(([label, share]) => {
      const item = document.createElement("li");
      item.textContent = `${label} ${share}`;
      return item;
    }));
    for (let layer = 0; layer < layers; layer += 1) {
      document.querySelector(`.map[data-layer="${layer}"]`).replaceChildren(maps[index * layers + layer]);
      document.querySelector(`.spread[data-layer="${layer}"]`).textContent = place.spread[layer];
    }
    row.setAttribute("aria-valuetext", `row ${Number(row.value) + 1} of ${data.rows}`);
    column.setAttribute("aria-valuetext", `column ${Number(column.value) + 1} of ${data.columns}`);
  };

  const move = (input, by) => {
    const value = Math.min(Math.max(Number(input.value) + by, 0), Number(input.max));
    if (value !== Number(input.value)) {
      input.value = String(value);
      show();
    }
  };

  const steps = { ArrowLeft: [column, -1], ArrowRight: [column, 1], ArrowUp: [row, -1], ArrowDown: [row, 1] };
  document.addEventListener("keydown", (event) => {
    const step = steps[event.key];
    if (!step || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    move(...step);
  });
  row.addEventListener("input", show);
  column.addEventListener("input", show);

  row.value = String(Math.floor(data.start / data.columns));
  column.value = String(data.start % data.columns);
  find("slider").hidden = false;
  show();
})();
