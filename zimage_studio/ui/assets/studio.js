// Ctrl or ⌘ + Enter generates, from wherever the focus is on the Generate tab.
document.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
  const button = document.querySelector("#zs-generate");
  if (!button || button.offsetParent === null) return;
  event.preventDefault();
  event.stopPropagation();
  // Gradio takes over what was typed on "input"; the click waits for that to be done.
  setTimeout(() => button.click(), 50);
}, true);
