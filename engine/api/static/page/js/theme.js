// Runs before anything is painted, so that a chosen theme does not flash. The system's choice is the default.
(() => {
  const root = document.documentElement;
  const stored = () => { try { return localStorage.getItem("shoal-theme"); } catch { return null; } };
  const isDark = () =>
    (root.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  if (stored() === "dark" || stored() === "light") root.dataset.theme = stored();

  addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const show = () => {
      button.setAttribute("aria-pressed", String(isDark()));
      dispatchEvent(new Event("shoal-theme"));
    };
    button.addEventListener("click", () => {
      root.dataset.theme = isDark() ? "light" : "dark";
      try { localStorage.setItem("shoal-theme", root.dataset.theme); } catch { /* only for this visit, then */ }
      show();
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
    show();
  });
})();
