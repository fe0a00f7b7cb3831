// Runs before anything is drawn, so that the page does not flash in the other theme. Unchosen, the system's is taken.
"use strict";
(() => {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const stored = () => {
    try { return localStorage.getItem("fusionroute-theme"); } catch { return null; }
  };
  const store = (theme) => {
    try { localStorage.setItem("fusionroute-theme", theme); } catch { /* it lasts as long as the page */ }
  };
  if (["light", "dark"].includes(stored())) root.dataset.theme = stored();

  addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const current = () => root.dataset.theme ?? (system.matches ? "dark" : "light");
    const label = () => {
      const other = current() === "dark" ? "light" : "dark";
      button.setAttribute("aria-label", `Switch to the ${other} theme`);
      button.title = `${other[0].toUpperCase()}${other.slice(1)} theme`;
    };
    button.addEventListener("click", () => {
      root.dataset.theme = current() === "dark" ? "light" : "dark";
      store(root.dataset.theme);
      label();
    });
    system.addEventListener("change", label);
    label();
  });
})();
