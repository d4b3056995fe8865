"use strict";
// The scale bar of a picture, of both pages of a slide: 1, 2 or 5 times a power of ten.
// `micrometres`: of one screen pixel.
function drawScaleBar(bar, micrometres) {
  const LONGEST = 160; // screen pixels
  const number = new Intl.NumberFormat("en");
  const most = micrometres * LONGEST, power = 10 ** Math.floor(Math.log10(most));
  const length = power * [5, 2, 1].find((times) => times * power <= most);
  bar.style.width = length / micrometres + "px";
  bar.textContent = length >= 1000 ? number.format(length / 1000) + " mm" : number.format(length) + " µm";
}
