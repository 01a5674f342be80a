// Details of an image are unfolded together, and for paper.
(function () {
  "use strict";
  function folds(image) { return Array.from(image.querySelectorAll("details.reportlet-block")); }
  document.querySelectorAll(".image").forEach(function (image) {
    var button = image.querySelector(".unfold");
    if (!button) { return; }
    function tell() {
      var all = folds(image).every(function (fold) { return fold.open; });
      button.textContent = all ? "Fold all" : "Unfold all";
      button.setAttribute("aria-expanded", String(all));
    }
    button.addEventListener("click", function () {
      var open = button.getAttribute("aria-expanded") !== "true";
      folds(image).forEach(function (fold) { fold.open = open; });
      tell();
    });
    folds(image).forEach(function (fold) { fold.addEventListener("toggle", tell); });
  });
  window.addEventListener("beforeprint", function () {
    document.querySelectorAll("details").forEach(function (fold) { fold.open = true; });
  });
}());
