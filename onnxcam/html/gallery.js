"use strict";
(() => {
  const one = (selector) => document.querySelector(selector);
  const tools = one(".tools"), list = one(".gallery"), count = one(".count"), none = one(".none");
  const cards = [...list.children];
  const text = one("#search"), truth = one("#truth"), predicted = one("#predicted"), order = one("#order");
  const low = one("#low"), high = one("#high"), scale = Number(tools.dataset.scale);

  const fill = (select, key) => {
    if (!select) return;
    const counts = new Map();
    for (const card of cards) {
      const name = card.dataset[key];
      if (name) counts.set(name, (counts.get(name) || 0) + 1);
    }
    for (const name of [...counts.keys()].sort((a, b) => a.localeCompare(b))) {
      select.add(new Option(`${name} (${counts.get(name)})`, name));
    }
  };

  const shown = () => cards.filter((card) => !card.hidden);

  const apply = () => {
    const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
    const checked = one('input[name="state"]:checked');
    const state = checked ? checked.value : "";
    const from = low.value === "" ? -Infinity : Number(low.value);
    const to = high.value === "" ? Infinity : Number(high.value);
    for (const card of cards) {
      const data = card.dataset;
      const number = data.confidence === "" ? NaN : scale * Number(data.confidence);
      const inside = (from === -Infinity && to === Infinity) || (number >= from && number <= to);
      card.hidden = !(
        inside &&
        (!state || data.state === state) &&
        (!truth || !truth.value || data.truth === truth.value) &&
        (!predicted || !predicted.value || data.predicted === predicted.value) &&
        words.every((word) => data.text.includes(word))
      );
      card.tabIndex = -1;
    }
    const left = shown();
    if (left.length) left[0].tabIndex = 0;
    count.textContent = `${left.length} of ${cards.length} shown`;
    none.hidden = left.length > 0;
  };

  const sort = () => {
    const sign = { low: 1, high: -1 }[order.value];
    const place = (card) => Number(card.dataset.place);
    const confidence = (card) => (card.dataset.confidence === "" ? Infinity * sign : Number(card.dataset.confidence));
    cards.sort((a, b) => (sign ? sign * (confidence(a) - confidence(b)) : 0) || place(a) - place(b));
    list.append(...cards);
    apply();
  };

  const clear = () => {
    for (const input of [text, low, high]) input.value = "";
    for (const select of [truth, predicted]) if (select) select.value = "";
    const all = one('input[name="state"][value=""]');
    if (all) all.checked = true;
    apply();
  };

  const focus = (card) => {
    for (const other of cards) other.tabIndex = -1;
    card.tabIndex = 0;
    card.focus();
    card.scrollIntoView({ block: "nearest" });
  };

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const typing = event.target.closest("input, select, textarea");
    if (event.key === "/" && !typing) {
      event.preventDefault();
      text.focus();
      return;
    }
    if (event.key === "Escape" && typing) {
      clear();
      return;
    }
    const card = event.target.closest(".gallery > li");
    if (!card) return;
    const left = shown(), here = left.indexOf(card);
    const columns = Math.max(1, left.filter((other) => other.offsetTop === left[0].offsetTop).length);
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
    const target = { Home: 0, End: left.length - 1 }[event.key] ?? (step === undefined ? undefined : here + step);
    if (target !== undefined) {
      event.preventDefault();
      if (left[target]) focus(left[target]);
    } else if (event.key === "Enter" && event.target === card) {
      const link = card.querySelector("a");
      if (link) link.click();
    }
  });

  fill(truth, "truth");
  fill(predicted, "predicted");
  for (const input of tools.querySelectorAll("input, select")) {
    input.addEventListener(input === order ? "change" : "input", input === order ? sort : apply);
  }
  one("#clear").addEventListener("click", clear);
  tools.hidden = count.hidden = false;
  apply();
})();
