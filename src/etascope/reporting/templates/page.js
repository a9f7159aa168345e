"use strict";
// Draws the figures in the colours of the page, and again when these change.
(() => {
  const root = document.documentElement;
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const coarse = matchMedia("(pointer: coarse)").matches;
  const config = { displayModeBar: false, responsive: true, doubleClick: "reset" };

  const coloured = (value, style) => {
    if (typeof value === "string") {
      return value.replace(/var\((--[a-z]+)\)/g, (_, name) => style.getPropertyValue(name).trim());
    }
    if (Array.isArray(value)) {
      return value.map((item) => coloured(item, style));
    }
    if (value !== null && typeof value === "object") {
      return Object.fromEntries(
        Object.entries(value).map(([key, item]) => [key, coloured(item, style)]),
      );
    }
    return value;
  };

  const draw = () => {
    const style = getComputedStyle(root);
    const font = {
      family: getComputedStyle(document.body).fontFamily,
      size: innerWidth < 480 ? 11 : 12.5,
      color: style.getPropertyValue("--soft").trim(),
    };
    for (const [name, figure] of Object.entries(figures)) {
      const { data, layout } = coloured(figure, style);
      const hoverlabel = {
        bgcolor: style.getPropertyValue("--panel").trim(),
        bordercolor: style.getPropertyValue("--axis").trim(),
        font: { ...font, color: style.getPropertyValue("--ink").trim() },
      };
      // A finger that moves over a figure means to scroll the page.
      const dragmode = coarse ? false : layout.dragmode;
      Plotly.react(`plot-${name}`, data, { ...layout, font, hoverlabel, dragmode }, config);
    }
    root.dataset.drawn = style.getPropertyValue("color-scheme").trim();
  };

  root.classList.add("scripted");
  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  // Paper is white whatever the screen is.
  const paper = (on) => () => {
    root.classList.toggle("printing", on);
    draw();
  };
  addEventListener("beforeprint", paper(true));
  addEventListener("afterprint", paper(false));
})();
