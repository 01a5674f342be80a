// Ratings are kept by the browser, per image and digest of its settings: an image that was made anew is rated anew.
(function () {
  "use strict";
  var items = Array.from(document.querySelectorAll("[data-rated-image]"));
  var button = document.querySelector(".save-ratings");
  var columns = ["participant_id", "session_id", "image", "rating", "comment", "settings_hash", "rated"];
  function place(item) { return "moesr-bids rating " + item.dataset.ratedImage + " " + item.dataset.settings; }
  function load(item) {
    try { return JSON.parse(localStorage.getItem(place(item))) || {}; } catch (error) { return {}; }
  }
  function keep(item, rating) {
    try {
      localStorage.setItem(place(item), JSON.stringify(rating));
    } catch (error) {
      document.querySelectorAll(".rating-trouble").forEach(function (note) { note.hidden = false; });
    }
  }
  function cell(text) { return String(text || "").replace(/\s+/g, " ").trim() || "n/a"; }
  function table() {
    var lines = [columns.join("\t")];
    items.forEach(function (item) {
      var rating = load(item);
      if (!rating.rated) { return; }
      lines.push([item.dataset.participant, item.dataset.session, item.dataset.ratedImage, cell(rating.rating),
        cell(rating.comment), item.dataset.settings, cell(rating.rated)].join("\t"));
    });
    return lines.join("\n") + "\n";
  }
  function show(item) {
    var rating = load(item);
    item.querySelectorAll("input[type=radio]").forEach(function (choice) {
      choice.checked = choice.value === (rating.rating || "");
    });
    var comment = item.querySelector("textarea"), told = item.querySelector(".rating-cell");
    if (comment) { comment.value = rating.comment || ""; }
    if (told && rating.rating) { told.textContent = rating.rating; }
  }
  items.forEach(function (item) {
    show(item);
    item.addEventListener("input", function () {
      var chosen = item.querySelector("input[type=radio]:checked");
      keep(item, {
        rating: chosen ? chosen.value : "",
        comment: item.querySelector("textarea").value,
        rated: new Date().toISOString().slice(0, 19) + "Z"
      });
    });
  });
  if (button) {
    button.addEventListener("click", function () {
      document.querySelectorAll(".no-ratings").forEach(function (note) {
        note.hidden = items.some(function (item) { return load(item).rated; });
      });
      var link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([table()], { type: "text/tab-separated-values" }));
      link.download = button.dataset.file;
      link.click();
      setTimeout(function () { URL.revokeObjectURL(link.href); }, 1000);
    });
  }
}());
