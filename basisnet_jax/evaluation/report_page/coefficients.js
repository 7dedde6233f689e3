// Coefficients by class: a table whose rows have a strip of colours.

const ALL = "all";

function vectorWords(chosen) {
  const { entropy, wins, class_share: share } = results.coefficients;
  const between = "of the coefficients' variance lies between the classes that the preview predicts.";
  if (chosen === ALL) return `${percent(share.all)} ${between}`;
  return `Entropy ${entropy[chosen].toFixed(3)}: 1 is uniform, 0 is one basis alone. ` +
    `${percent(share.vectors[chosen])} ${between} Share of images for which each basis is the strongest: ` +
    `${wins[chosen].map(percent).join(", ")}.`;
}

function showCoefficients() {
  const { vectors, bases, classes, step, images, largest, shades } = data.coefficients;
  const parts = bytes(data.coefficients.bytes); // [class, vector, basis], 255 times the square root of the share
  const rgba = new Uint32Array(new Uint8Array(shades.flatMap((shade) =>
    [...[1, 3, 5].map((at) => parseInt(shade.slice(at, at + 2), 16)), 255])).buffer);
  const across = vectors.length * bases;
  const table = find("heat-table");
  find("coefficients").hidden = false;
  find("coefficients-words").textContent = `The mean coefficient of each basis, for ${whole(classes.length)} classes` +
    `${step > 1 ? ` (one in ${step})` : ""}. The scale is a square root, so that small differences show.`;
  find("shades").style.background = `linear-gradient(to right, ${shades.join()})`;
  find("largest").textContent = largest.toFixed(3);
  fillSelect(find("vector"), [[ALL, `all ${vectors.length}`], ...vectors.entries()]);

  const rows = classes.map((index, number) => {
    const canvas = make("canvas");
    const strongest = make("td", { className: "strongest" });
    const name = make("th", { scope: "row", className: "name" }, className(index));
    const row = make("tr", {}, name, strongest, make("td", { className: "strip" }, canvas));
    row.dataset.number = number;
    return { row, canvas, strongest, number, name: data.classes[index], basis: 0, value: 0 };
  });
  const body = make("tbody", {}, ...rows.map(({ row }) => row));
  const heading = make("div", { className: "bases" });
  table.replaceChildren(
    make("thead", {}, make("tr", {}, make("th", { scope: "col", className: "name" }, "class"),
      make("th", { scope: "col", className: "strongest" }, "strongest"), make("th", { scope: "col" }, heading))),
    body,
  );
  let first = 0; // the columns that are shown: `first` and those after it
  let columns = across;
  const value = (number, column) => largest * (parts[number * across + column] / 255) ** 2;

  function chooseVector() {
    const chosen = find("vector").value;
    [first, columns] = chosen === ALL ? [0, across] : [Number(chosen) * bases, bases];
    table.style.setProperty("--vectors", columns / bases);
    table.classList.toggle("all", chosen === ALL);
    find("vector-words").textContent = vectorWords(chosen);
    const numbers = chosen === ALL ? [] : Array.from({ length: bases }, (_, basis) => basis + 1);
    const every = Math.ceil(bases / 16); // two digits fit above one in 16 of a phone's width
    heading.replaceChildren(
      chosen === ALL ? `${bases} bases of each of ${vectors.length} vectors` : "",
      ...numbers.map((number) => make("span", {}, (number - 1) % every ? "" : String(number))),
    );
    for (const row of rows) drawRow(row, chosen !== ALL);
    const sorts = [["similar", "similar classes together"], ["name", "name"], ["images", "number of images"]];
    if (numbers.length) sorts.push(["strongest", "strongest basis"]);
    for (const number of numbers) sorts.push([number - 1, `basis ${number}`]);
    const before = find("sort").value;
    fillSelect(find("sort"), sorts);
    find("sort").value = sorts.some(([sort]) => String(sort) === before) ? before : "similar";
    sortRows();
  }

  function drawRow(row, one) {
    Object.assign(row.canvas, { width: columns, height: 1 });
    const context = row.canvas.getContext("2d", { willReadFrequently: true });
    const image = context.createImageData(columns, 1);
    const pixels = new Uint32Array(image.data.buffer);
    row.basis = 0;
    for (let column = 0; column < columns; column += 1) {
      const part = parts[row.number * across + first + column];
      pixels[column] = rgba[Math.floor((part * rgba.length) / 256)];
      if (part > parts[row.number * across + first + row.basis]) row.basis = column;
    }
    context.putImageData(image, 0, 0);
    row.value = value(row.number, first + row.basis);
    row.strongest.textContent = one ? `${row.basis + 1}: ${row.value.toFixed(3)}` : "";
  }

  function sortRows() {
    const by = find("sort").value;
    const orders = {
      similar: (a, b) => a.number - b.number,
      name: (a, b) => a.name.localeCompare(b.name, "en", { numeric: true }),
      images: (a, b) => images[b.number] - images[a.number],
      strongest: (a, b) => a.basis - b.basis || b.value - a.value,
    };
    const column = first + Number(by);
    const byBasis = (a, b) => value(b.number, column) - value(a.number, column);
    body.append(...rows.toSorted(orders[by] ?? byBasis).map(({ row }) => row));
  }

  find("vector").addEventListener("change", chooseVector);
  find("sort").addEventListener("change", sortRows);
  find("find").addEventListener("input", (event) => {
    const wanted = event.target.value.toLowerCase();
    for (const { row, name } of rows) row.hidden = !name.toLowerCase().includes(wanted);
  });
  find("zoom").addEventListener("input", ({ target }) => {
    table.style.setProperty("--row", `${target.value}px`);
    table.classList.toggle("overview", target.value < 10);
  });
  body.addEventListener("mousemove", ({ target, offsetX }) => {
    const number = target.closest("tr")?.dataset.number;
    if (number === undefined || target.tagName !== "CANVAS") return;
    const column = first + Math.min(Math.floor((offsetX / target.clientWidth) * columns), columns - 1);
    find("pointed").replaceChildren(
      className(classes[number]), ` (${whole(images[number])} images), ${vectors[Math.floor(column / bases)]}, ` +
      `basis ${(column % bases) + 1}: ${value(number, column).toFixed(3)}`);
  });
  chooseVector();
}
